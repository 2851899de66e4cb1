"""Tasks of questions and answers as requests, replies as rows that the gates and a judge have seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, RunFailed, did_you_mean
from mlxforge.knowledge.asked import Reply, Request
from mlxforge.knowledge.gates import Candidate, Passage, refused
from mlxforge.knowledge.jobs import Job, Row, Task, Usage
from mlxforge.knowledge.providers import PROVIDERS, Provider
from mlxforge.knowledge.sampling import passage
from mlxforge.knowledge.schemas import from_json, problem, record, text_of
from mlxforge.knowledge.store import Store
from mlxforge.knowledge.styles import STYLES
from mlxforge.knowledge.templates import Prompt

SPARE = 64  # tokens of an answer beside its rows
JUDGED_TOGETHER = 32  # tasks whose rows wait for the judge: what a kill may lose
VERDICT = record(
    reason=text_of(2, 500, "why, in a sentence"),
    score={"type": "integer", "minimum": 1, "maximum": 5, "description": "1 to 5"},
)


@dataclass(frozen=True)
class QaSettings:
    """What decides the rows.

    Attributes:
        styles: names of :data:`mlxforge.knowledge.styles.STYLES`.
        per_chunk: rows asked for of each chunk; styles take turns.
        limit: rows asked for in all; a larger one goes on with the same job.
        audience: for whom, in the words of the prompt.
        prompts: a folder whose files replace the shipped ones.
        valid, test: shares of the documents.
        near: similarity of questions from which on the later one is a duplicate.
        least_score: of the judge, from 1 to 5.

    Raises:
        ConfigError: an unknown style or provider, or shares that leave nothing to train on.
    """

    styles: tuple[str, ...] = tuple(STYLES)
    per_chunk: int = 3
    limit: int | None = None
    provider: str = "mlx"
    judge: str = ""
    least_score: int = 4
    audience: str = "people who want to know the subject"
    prompts: Path | None = None
    seed: int = 0
    temperature: float = 0.7
    valid: float = 0.05
    test: float = 0.05
    near: float = 0.8

    def __post_init__(self) -> None:
        for style in self.styles:
            if style not in STYLES:
                raise ConfigError(f"unknown style '{style}'", where="--styles", fix=did_you_mean(style, STYLES))
        if not self.styles or len(set(self.styles)) < len(self.styles):
            raise ConfigError("each style once, and at least one", where="--styles", fix=f"known: {', '.join(STYLES)}")
        for name, flag in ((self.provider, "--provider"), (self.judge, "--judge")):
            if name and name not in PROVIDERS:
                raise ConfigError(f"unknown provider '{name}'", where=flag, fix=did_you_mean(name, PROVIDERS))
        if self.valid + self.test >= 1:
            what = f"{self.valid:g} and {self.test:g} leave nothing to train on"
            raise ConfigError(what, where="--valid, --test", fix="less than 1 in all")


@dataclass
class Writer:
    """Turns tasks into requests and replies into rows."""

    store: Store
    settings: QaSettings
    model: str
    prompts: Mapping[str, Prompt]
    job: str = ""
    passages: dict[int, Passage] = field(default_factory=dict)

    def request(self, task: Task) -> Request:
        """What a task asks for."""
        found = self.passages[task.id] = passage(self.store, task.chunk)
        style, count = STYLES[task.style], int(task.request["count"])
        values = {
            "title": found.title,
            "heading": found.heading,
            "passage": found.text.strip(),
            "count": str(count),
            "audience": self.settings.audience,
        }
        messages = self.prompts[task.style].filled(values)
        room, settings = style.tokens * count + SPARE, self.settings
        return Request(str(task.number), messages, style.schema(count), room, settings.temperature, settings.seed)

    def rows(self, task: Task, text: str) -> list[Row]:
        """The rows of an answer, each with the gate that refused it, if any did."""
        found = self.passages.pop(task.id)
        value = from_json(text)
        items = value.get("rows") if isinstance(value, dict) else None
        if not isinstance(items, list) or not items:
            reason = "no JSON" if value is None else "no rows"
            return [Row({"answer": text, "source": self.source(task, found, found.span)}, "schema", reason)]
        return [self._row(task, Candidate(STYLES[task.style], _stripped(item), found)) for item in items]

    def _row(self, task: Task, candidate: Candidate) -> Row:
        gate, reason = refused(candidate)
        if gate == "schema":
            source = self.source(task, candidate.passage, candidate.passage.span)
            return Row({"answer": candidate.values, "source": source}, gate, reason)
        roles = ("user", "assistant")
        messages = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(candidate.turns)]
        source = self.source(task, candidate.passage, candidate.span)
        return Row({"messages": messages, "source": {**source, "quote": candidate.values["quote"]}}, gate, reason)

    def source(self, task: Task, found: Passage, span: tuple[int, int]) -> dict[str, Any]:
        """Where a row comes from."""
        return {
            "document": found.document,
            "chunk": found.chunk,
            "span": list(span),
            "style": task.style,
            "model": self.model,
            "prompt": self.prompts[task.style].hash,
            "job": self.job,
        }


@dataclass
class Made:
    """What a task came to, before it is kept."""

    task: Task
    rows: list[Row]
    usage: Usage
    passage: Passage


def answered(job: Job, writer: Writer, asked: Provider) -> Iterator[Made]:
    """The rows of each task that is answered; those that are not are noted."""
    begun: dict[str, Task] = {}

    def requests() -> Iterator[Request]:
        for task in job.open_tasks():
            request = writer.request(task)
            begun[request.key] = task
            yield request

    for reply in asked.complete(requests()):
        task = begun.pop(reply.key)
        found, usage = writer.passages[task.id], _usage(reply)
        if reply.error:
            del writer.passages[task.id]
            job.fail(task, reply.error, usage, later=reply.later)
        else:
            yield Made(task, writer.rows(task, reply.text), usage, found)


def _usage(reply: Reply) -> Usage:
    return Usage(1, reply.prompt_tokens, reply.completion_tokens, reply.cost)


def judged(made: Iterable[Made], judge: Provider, prompt: Prompt, settings: QaSettings) -> Iterator[Made]:
    """The same with the judge's verdicts on rows that passed. What a failing provider has answered is still judged."""
    held: list[Made] = []
    failed: RunFailed | None = None
    source = iter(made)
    while True:
        try:
            one = next(source, None)
        except RunFailed as error:
            one, failed = None, error
        if one is not None:
            held.append(one)
        if one is None or len(held) >= JUDGED_TOGETHER:
            yield from _verdicts(held, judge, prompt, settings)
            held = []
        if failed:
            raise failed
        if one is None:
            return


def _verdicts(held: list[Made], judge: Provider, prompt: Prompt, settings: QaSettings) -> Iterator[Made]:
    waiting = {
        f"judge {one.task.number}:{place}": (one, place) for one in held for place, row in enumerate(one.rows) if not row.gate
    }
    requests = [_question(key, one, place, prompt) for key, (one, place) in waiting.items()]
    left = Counter(id(one) for one, _ in waiting.values())
    yield from (one for one in held if not left[id(one)])
    for reply in judge.complete(requests):
        one, place = waiting[reply.key]
        one.rows[place] = _verdict(one.rows[place], reply, judge.model, settings.least_score)
        one.usage = one.usage + _usage(reply)
        left[id(one)] -= 1
        if not left[id(one)]:
            yield one


def _question(key: str, one: Made, place: int, prompt: Prompt) -> Request:
    turns = one.rows[place].content["messages"]
    values = {
        "title": one.passage.title,
        "passage": one.passage.text.strip(),
        "style": one.task.style,
        "conversation": "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in turns),
    }
    return Request(key, prompt.filled(values), VERDICT, 400, 0.0)


def _verdict(row: Row, reply: Reply, model: str, least: int) -> Row:
    value = from_json(reply.text)
    if reply.error or problem(value, VERDICT):
        return Row(row.content, "judge", f"no verdict: {reply.error or problem(value, VERDICT)}")
    content = {**row.content, "source": {**row.content["source"], "judge": {"model": model, **value}}}
    low = value["score"] < least
    return Row(content, "judge" if low else "", f"{value['score']} of 5: {value['reason']}" if low else "")


def _stripped(value: Any) -> Any:
    """The value with no white space around its texts."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, dict):
        return {key: _stripped(part) for key, part in value.items()}
    return [_stripped(part) for part in value] if isinstance(value, list) else value
