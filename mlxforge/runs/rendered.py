"""What jobs on conversations and on pairs share: the template with its encoders, and the questions that are put to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, DataError, ModelError
from mlxforge.core.events import Emit, Warned, ignore
from mlxforge.core.files import cache_dir
from mlxforge.core.rows import Chat, Message
from mlxforge.core.settings import ChatSettings, TrainSettings
from mlxforge.data.formats import read_rows
from mlxforge.data.readers import Reading
from mlxforge.data.sources import Source, locate, parse_spec
from mlxforge.data.stored import THOUGHTS, RowOptions
from mlxforge.data.tokens import Encoder
from mlxforge.runs.material import Base, Question
from mlxforge.runs.text import expand, make_encoder


@dataclass(frozen=True)
class Rendering:
    """What turns the rows of a job into tokens: its template, the encoder of plain text, and how its own rows are read."""

    template: Any
    text: Encoder
    options: RowOptions


def rendering(settings: ChatSettings, base: Base, cache: Path | None) -> Rendering:
    """What renders a job's rows; ``cache`` is the folder of its token caches, by default the user's.

    Raises:
        ModelError: the template is missing or cannot be used.
    """
    from mlxforge.models.render import TemplateRefused
    from mlxforge.models.template import load_template

    try:
        template = load_template(base.path, base.detected, saved=base.run)
    except TemplateRefused as refused:
        what = f"the template refuses a plain question with its answer, and so any row: {refused.what.partition(': ')[2]}"
        raise ModelError(what, where=refused.where, fix=f"mend the chat template of {base.run or base.path}") from refused
    text = make_encoder(base.tokenizer, base.path, base.fast)
    folder = cache or cache_dir() / "tokens"
    return Rendering(template, text, RowOptions(folder, text.vocabulary, settings.format, settings.map, settings.skip_bad))


def sources_of(*specs: str) -> Sequence[Source]:
    """The sources that a user named."""
    return [parse_spec(expand(spec)) for spec in specs]


def thoughts_of(template: Any, counts: Mapping[str, int]) -> tuple[bool, Any]:
    """Whether most rows have thoughts, and the template that goes with the adapter: with its switch of thoughts set so."""
    thoughts, rows = counts.get(THOUGHTS, 0), counts["rows"]
    thinking = 2 * thoughts > rows
    # Rows of both kinds leave the switch to whoever asks.
    return thinking, template if 0 < thoughts < rows else template.with_thinking(thinking)


def questions_of(settings: ChatSettings, template: Any, base: Base, thinking: bool, emit: Emit) -> list[Question]:
    """The conversations of the task, each without its last answer.

    Raises:
        DataError: bad rows, or conversations that do not end with an answer or that the template refuses.
    """
    from mlxforge.models.render import TemplateRefused

    if settings.task is None:
        return []
    reading = Reading()
    inputs = locate([parse_spec(expand(settings.task))], ignore)
    rows = list(read_rows(inputs, "chat", mapping=settings.map, reading=reading))
    for row in rows:
        if isinstance(row.row, Chat) and row.row.messages[-1].role != "assistant":
            reading.problem("the last turn is not an answer", row.origin, "end each conversation of a task with its answer")
    reading.check()
    if not rows:
        raise DataError("no question", where=settings.task, fix="give conversations that end with the right answer")
    found = []
    for row in rows:
        assert isinstance(row.row, Chat)
        try:
            found.append(_question(template, base, row.row, thinking))
        except TemplateRefused as refused:
            reading.problem(refused.what, row.origin, str(refused.where))
    reading.check()
    if long := sum(size > settings.answer_tokens for _, size in found):
        what = f"answers of the task longer than answer_tokens {settings.answer_tokens}, which cannot be given whole: {long:,}"
        emit(Warned(message=what))
    return [question for question, _ in found]


def _question(template: Any, base: Base, chat: Chat, thinking: bool) -> tuple[Question, int]:
    """The last question, and how many tokens its answer has; the answer as the template writes it, calls of tools too."""
    from mlxforge.models.streaming import answer_in, markers

    said = chat.messages
    asked, written = template.turn(said, len(said) - 1, chat.tools)
    reply = [token for token in template.encode(written)[0] if token not in template.stop]
    answer = answer_in(base.tokenizer, markers(base.detected, template.think), template.encode(asked)[0], reply)
    return Question(template.prompt(said[:-1], chat.tools, thinking=thinking), said[-2].content, answer), len(reply)


def asked(settings: TrainSettings, template: Any, thinking: bool) -> list[Question]:
    """The settings' own sample texts as questions.

    Raises:
        ConfigError: the template refuses one.
    """
    from mlxforge.models.render import TemplateRefused

    found = []
    for text in settings.samples:
        try:
            found.append(Question(template.prompt((Message("user", text),), thinking=thinking), text))
        except TemplateRefused as refused:
            raise ConfigError(f"{text!r}: {refused.what}", where="samples", fix=str(refused.where)) from refused
    return found


def asked_first(template: Any, rows: Any, thinking: bool) -> list[Question]:
    """The last question of the first conversation that a set keeps as an example: only a file of its own has none of others."""
    chat = rows.examples[0]
    end = max(index for index, message in enumerate(chat.messages) if message.role == "assistant")
    prompt = chat.messages[:end]
    return [Question(template.prompt(prompt, chat.tools, thinking=thinking), prompt[-1].content)] if prompt else []
