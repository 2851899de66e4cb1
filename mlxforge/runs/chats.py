"""From the data settings of a chat job to its material: rows with masks, fixed sets, prompts, and questions to be answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, DataError
from mlxforge.core.events import Emit, Noted, Warned, ignore
from mlxforge.core.files import cache_dir
from mlxforge.core.rows import Chat, Message
from mlxforge.core.settings import ChatSettings, SftConfig, TrainSettings
from mlxforge.data.batch import Rows
from mlxforge.data.chats import THOUGHTS, ChatRows, prepare_chats
from mlxforge.data.formats import read_rows
from mlxforge.data.masks import ChatEncoder
from mlxforge.data.mix import Mixture
from mlxforge.data.readers import Reading
from mlxforge.data.selftest import self_test
from mlxforge.data.sources import Source, locate, parse_spec
from mlxforge.data.tokens import split_by_hash
from mlxforge.runs.material import Base, Material, Question
from mlxforge.runs.text import check_data, expand, make_encoder, replayed, retained, text_replay


def read(settings: TrainSettings, base: Base, emit: Emit, cache: Path | None = None) -> Material:
    """Reads, renders, masks and tokenises everything that the settings name, and tests the template on it.

    Raises:
        ConfigError: no data named, or a replay without its ratio or the other way round.
        DataError: bad rows, see :func:`mlxforge.data.chats.prepare_chats`.
        ModelError: the template is missing or fails its self-test.
    """
    assert isinstance(settings, SftConfig)
    check_data(settings)
    _check_replay(settings)
    from mlxforge.models.template import load_template

    template = load_template(base.path, base.detected, saved=base.run)
    folder = cache or cache_dir() / "tokens"
    options: dict[str, Any] = {"max_length": settings.max_length, "overlong": settings.overlong}
    encoder = ChatEncoder(template, train_on=settings.train_on, **options)
    text = make_encoder(base.tokenizer, base.path, base.fast)

    def chats(sources: Sequence[Source], **how: Any) -> ChatRows:
        how |= {"skip_bad": settings.skip_bad, "emit": emit, "vocabulary": text.vocabulary, "cache": folder}
        return prepare_chats(sources, encoder, **how)

    own: dict[str, Any] = {"format": settings.format, "mapping": settings.map}
    whole = chats([parse_spec(expand(spec)) for spec in settings.data], **own)
    named = chats([parse_spec(expand(settings.valid))], **own) if settings.valid else None
    train, valid = _held_out(whole, named, settings, emit)
    if not len(train):
        raise DataError("no conversation is left to train on", where="data", fix="give more rows, or another valid set")
    chat_replay = chats(replayed(settings.chat_replay, "chat_replay")) if settings.chat_replay else None
    self_test(encoder, [chat for rows in (whole, valid, chat_replay) if rows is not None for chat in rows.examples])
    thoughts, conversations = whole.counts.get(THOUGHTS, 0), whole.counts["rows"]
    thinking = 2 * thoughts > conversations
    # Rows of both kinds leave the switch of thoughts to whoever asks.
    mixed = 0 < thoughts < conversations
    text_rows = text_replay(settings, text, folder, emit)
    replays: list[tuple[Rows, float]] = [(text_rows, settings.replay_ratio)] if text_rows else []
    replays += [(chat_replay, settings.chat_replay_ratio)] if chat_replay else []
    fixed: dict[str, tuple[Rows, int]] = {"valid": (valid, int(valid.bytes.sum()))} if valid is not None else {}
    hashes = {"train": train.hash, **({"valid": valid.hash} if valid is not None else {})}
    if kept := retained(settings, text, folder, emit):
        fixed["retention"] = (kept, int(kept.tokens.bytes.sum()))
        hashes["retention"] = kept.tokens.hash
    hashes |= {"replay": text_rows.tokens.hash} if text_rows else {}
    hashes |= {"chat_replay": chat_replay.hash} if chat_replay else {}
    questions = questions_of(settings, template, base, thinking, emit)
    held = valid if valid is not None else train
    shown = questions or (asked_first(template, held, thinking) if settings.valid else _first_prompts(held, base.tokenizer))
    saved = template if mixed else template.with_thinking(thinking)
    return Material(
        mixture=Mixture(train, train.weights, tuple(replays)),
        fixed=fixed,
        tokenizer=encoder.key,
        hashes=hashes,
        plan={
            "conversations": train.conversations,
            "valid_conversations": valid.conversations if valid is not None else 0,
            "rows": len(train),
            "tokens": int(train.lengths.sum()),
            "trained_tokens": int(train.trained.sum()),
        },
        prompts=asked(settings, template, thinking) or shown[:1] if settings.sample_tokens else [],
        stop=template.stop,
        questions=questions,
        save=saved.save,
    )


def _check_replay(settings: SftConfig) -> None:
    if bool(settings.chat_replay) != (settings.chat_replay_ratio > 0):
        what = "chat_replay and chat_replay_ratio go together"
        raise ConfigError(what, where="chat_replay", fix="give both, such as chat_replay_ratio=0.1")
    if settings.replay_ratio + settings.chat_replay_ratio >= 1:
        what = f"{settings.replay_ratio} and {settings.chat_replay_ratio} leave no share for the data itself"
        raise ConfigError(what, where="replay_ratio, chat_replay_ratio", fix="let them sum to less than 1")


def _held_out(whole: ChatRows, valid: ChatRows | None, settings: ChatSettings, emit: Emit) -> tuple[ChatRows, ChatRows | None]:
    if valid is not None:
        kept = whole.without(valid)
        if len(kept) < len(whole):
            left_out = whole.conversations - kept.conversations
            emit(Noted(message=f"{left_out} training conversations left out: they are in the validation set"))
        return kept, valid
    if settings.valid_split == 0:
        return whole, None
    kept, held = split_by_hash(whole, settings.valid_split)
    if not len(held):
        emit(Warned(message="one conversation alone: nothing is held out, so there is no validation (give --valid)"))
        return whole, None
    return kept, held


def questions_of(settings: ChatSettings, template: Any, base: Base, thinking: bool, emit: Emit) -> list[Question]:
    """The conversations of the task, each without its last answer.

    Raises:
        DataError: bad rows, or a conversation that does not end with an answer.
    """
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
    found = [_question(template, base, row.row, thinking) for row in rows if isinstance(row.row, Chat)]
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
    """The settings' own sample texts as questions."""
    messages = [(Message("user", text),) for text in settings.samples]
    return [Question(template.prompt(one, thinking=thinking), one[0].content) for one in messages]


def asked_first(template: Any, rows: Any, thinking: bool) -> list[Question]:
    """The last question of the first conversation that a set keeps as an example: only a file of its own has none of others."""
    chat = rows.examples[0]
    end = max(index for index, message in enumerate(chat.messages) if message.role == "assistant")
    prompt = chat.messages[:end]
    return [Question(template.prompt(prompt, chat.tools, thinking=thinking), prompt[-1].content)] if prompt else []


def _first_prompts(rows: ChatRows, tokenizer: Any) -> list[Question]:
    """What comes before the first trained token of the first row: just what inference would render."""
    row = rows[0]
    assert row.mask is not None
    ids = [int(token) for token in row.tokens[: 1 + int(row.mask.argmax())]]
    return [Question(ids, tokenizer.decode(ids, skip_special_tokens=True).strip())]
