"""What models are evaluated on: sets of rows, whose kind is found by their content.

``text`` is scored by its likelihood; ``chat`` asks for the last answer of each conversation, ``commands`` for a command as
JSON; ``choices`` and ``pairs`` compare the likelihoods of given answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mlxforge.core.errors import DataError
from mlxforge.core.events import Emit, Noted, ignore
from mlxforge.core.files import bytes_hash, embedded
from mlxforge.core.rows import Chat, Message, Messages, Preference
from mlxforge.data.formats import BadRow, Detector, RowReader
from mlxforge.data.formats.base import from_json
from mlxforge.data.formats.rows import as_kind
from mlxforge.data.formats.turns import written
from mlxforge.data.methods import taken
from mlxforge.data.readers import FileText, Reading, Record
from mlxforge.data.sources import Input, documents, locate, parse_spec, records
from mlxforge.evals.report import SetInfo
from mlxforge.runs.passages import passages
from mlxforge.runs.text import expand

SCHEMA = "schema.json"  # beside the rows of `mlxforge synth commands`
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FIX_CHOICES = 'write {"question": "...", "choices": ["...", "..."], "answer": 0}'


@dataclass(frozen=True, kw_only=True)
class EvalRow:
    """One row of a set; what its kind does not have is empty.

    Attributes:
        index: its place in the set.
        text: of a text set, a passage; ``document`` counts the documents that passages belong to.
        prompt: the conversation before the answer.
        references: right answers.
        answers: continuations whose likelihood is asked for; of a pair the chosen one first.
        right: place of the right one.
        schema: the JSON schema that the answer must fit.
        source: where the row comes from, as it says itself.
        context: passages that were put into the prompt; ``hit``: whether they hold the one asked about.
    """

    index: int
    text: str = ""
    document: int = 0
    prompt: Chat | None = None
    references: tuple[str, ...] = ()
    answers: tuple[Messages, ...] = ()
    right: int = 0
    schema: Mapping[str, Any] | None = None
    source: Any = None
    context: tuple[Mapping[str, Any], ...] = ()
    hit: float | None = None

    @property
    def shown_prompt(self) -> list[dict[str, Any]] | str | None:
        """What ``rows.jsonl`` has as the prompt: messages, or the text."""
        return [written(message) for message in self.prompt.messages] if self.prompt else self.text or None

    @property
    def shown_reference(self) -> Any:
        """What ``rows.jsonl`` has as the reference."""
        if not self.answers:
            return None if not self.references else self.references[0] if len(self.references) == 1 else list(self.references)
        return self.answers[self.right][-1].content

    @property
    def key(self) -> str:
        """A hash of all that decides what a model gives for the row."""
        tools = [dict(tool) for tool in self.prompt.tools] if self.prompt else []
        said = [[written(message) for message in answer] for answer in self.answers]
        return bytes_hash(json.dumps([self.text, self.shown_prompt, tools, said], ensure_ascii=True, default=str))


@dataclass(frozen=True)
class EvalSet:
    """A set of rows; ``info`` is what the report says of it."""

    info: SetInfo
    rows: tuple[EvalRow, ...]

    @property
    def name(self) -> str:
        """Its name in the report."""
        return self.info.name

    @property
    def kind(self) -> str:
        """``text``, ``chat``, ``commands``, ``choices`` or ``pairs``."""
        return self.info.kind


class Source(NamedTuple):
    """Where rows are read from: files, who is told of bad rows, and how rows are read where that was said."""

    inputs: Sequence[Input]
    reading: Reading
    format: str | None
    mapping: Mapping[str, str]


class Spec(NamedTuple):
    """``--data NAME=FILE``."""

    name: str
    path: str


def parse_sets(given: Sequence[str]) -> list[Spec]:
    """``FILE`` and ``NAME=FILE``; a name that was not given is the file's stem, made unique.

    Raises:
        DataError: a name twice, or one that cannot stand in a figure's path.
    """
    found: list[Spec] = []
    for one in given:
        name, equals, path = one.partition("=")
        named = bool(equals) and not Path(expand(one)).expanduser().exists() and "/" not in name and ":" not in name
        path = path if named else one
        stem = name.strip() if named else _stem(path)
        taken_names = {spec.name for spec in found}
        if named and (not stem or "." in stem):
            raise DataError("a set's name is empty or has a '.'", where=one, fix="NAME=FILE, as in test=questions.jsonl")
        if named and stem in taken_names:
            raise DataError(f"two sets are named '{stem}'", where="--data", fix="give each a name of its own: NAME=FILE")
        unique = next(
            name
            for number in range(1, len(found) + 2)
            if (name := f"{stem}-{number}" if number > 1 else stem) not in taken_names
        )
        found.append(Spec(unique, path))
    return found


def _stem(path: str) -> str:
    name = Path(path.removeprefix("hub:").rstrip("/")).name
    name = name if Path(path).expanduser().is_dir() else Path(name).stem
    return name.replace(".", "_").replace(":", "_").replace("=", "_") or "data"


def retention_text() -> str:
    """The general text that mlxforge ships."""
    return str(embedded("data", "general", "retention.txt"))


def read_set(
    spec: Spec,
    *,
    limit: int | None = None,
    formatted: str | None = None,
    mapping: Mapping[str, str] | None = None,
    emit: Emit = ignore,
) -> EvalSet:
    """Reads one set whole; its kind is that of its first row.

    Args:
        limit: rows at most, the first ones; of a text, passages.

    Raises:
        DataError: nothing there, no row, bad rows, or rows of no kind that can be evaluated.
    """
    source = parse_spec(expand(spec.path))
    if source.weight != 1:
        raise DataError(
            "weights are for training", where=spec.path, fix="leave '@' and its number out; --limit N takes the first rows"
        )
    inputs = locate([source], emit)
    kind = _kind_of(inputs, spec, formatted, mapping or {})
    reading = Reading()
    rows = list(READERS[kind](Source(inputs, reading, formatted, mapping or {})))
    reading.check()
    for what, count in reading.left.items():
        emit(Noted(message=f"{spec.name}: {count:,} {what}, left out"))
    if not rows:
        raise DataError("no row to evaluate", where=spec.path, fix="give a file that has some")
    if limit is not None and len(rows) > limit:
        emit(Noted(message=f"{spec.name}: the first {limit:,} of {len(rows):,} rows (--limit)"))
        rows = rows[:limit]
    content = bytes_hash(*(row.key for row in rows), *(json.dumps(row.references) for row in rows))
    return EvalSet(SetInfo(name=spec.name, path=spec.path, kind=kind, rows=len(rows), hash=content), tuple(rows))


def _kind_of(inputs: Sequence[Input], spec: Spec, formatted: str | None, mapping: Mapping[str, str]) -> str:
    """The kind of the first row.

    Raises:
        DataError: no row, or none of a kind that can be evaluated.
    """
    reading = Reading()
    first = next(chain.from_iterable(records(given, reading) for given in inputs), None)
    if first is None:
        reading.check()
        raise DataError("no row to evaluate", where=spec.path, fix="give a file that has some")
    if isinstance(first, FileText):
        return "text"
    if "choices" in first.values:
        return "choices"
    detector = Detector(formatted, mapping or None)
    try:
        found = detector(detector.renamed(first.values))
    except BadRow as bad:
        fix = bad.fix or f"chat rows, pairs, text, or choices: {FIX_CHOICES}"
        raise DataError(bad.reason, where=first.origin, fix=fix) from bad
    if found.name == "commands":
        return "commands"
    return {"text": "text", "chat": "chat"}.get(found.kind, "pairs")


def _texts(given: Source) -> Iterator[EvalRow]:
    """The passages of all documents; as in training, blank documents and exact duplicates are left out."""
    seen: set[str] = set()
    index = 0
    for document in documents(given.inputs, given.mapping, given.reading):
        text = document.text
        if not text.strip():
            given.reading.leave("documents without text")
        elif text in seen:
            given.reading.leave("exact duplicate documents")
        else:
            seen.add(text)
            for part in passages(text):
                yield EvalRow(index=index, text=part, document=len(seen) - 1)
                index += 1


def _rows_of(source: Source, kind: str) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """(row of ``kind``, the values it was read from, where it stands); values are empty where rows were joined."""
    detector, takes, reading = Detector(source.format, source.mapping or None), taken(kind), source.reading
    for given in source.inputs:
        values: dict[str, dict[str, Any]] = {}

        def noted(values: dict[str, dict[str, Any]] = values, given: Input = given) -> Iterator[Any]:
            for found in RowReader(detector, reading, takes)(given):
                values[found.origin] = found.values
                yield found
                values.pop(found.origin, None)

        for row, origin in as_kind(noted(), kind, takes, reading):
            yield row, values.get(origin, {}), origin


def _chats(given: Source) -> Iterator[EvalRow]:
    """Conversations, each without its last answer, which is the reference."""
    schemas = _Schemas()
    for index, (row, values, origin) in enumerate(_rows_of(given, "chat")):
        assert isinstance(row, Chat)
        said = row.messages
        if said[-1].role != "assistant" or len(said) < 2:
            given.reading.problem("the last turn is not an answer", origin, "end each conversation with the right answer")
            continue
        more = _references(values)
        if more is None:
            given.reading.problem("'references' is no list of texts", origin, 'write {"references": ["...", "..."]}')
            continue
        right = more or ((said[-1].content,) if said[-1].content.strip() else ())
        if not right and not said[-1].tool_calls:
            given.reading.problem("the last answer is empty", origin, "fill it in, or remove the row")
            continue
        yield EvalRow(
            index=index,
            prompt=Chat(said[:-1], row.tools),
            references=right,
            schema=schemas(values, origin),
            source=values.get("source"),
        )


def _references(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Right answers that a row gives in place of its last one; None where they are no texts."""
    more = values.get("references")
    found = [more] if isinstance(more, str) else [] if more is None else more
    return tuple(found) if isinstance(found, list) and all(isinstance(one, str) for one in found) else None


class _Schemas:
    """The JSON schema of a row: its own, else the one beside its file."""

    def __init__(self) -> None:
        self.beside: dict[Path, Mapping[str, Any] | None] = {}

    def __call__(self, values: Mapping[str, Any], origin: str) -> Mapping[str, Any] | None:
        own = values.get("schema")
        own = from_json(own) if isinstance(own, str) else own
        if isinstance(own, Mapping):
            return own
        folder = Path(origin.rpartition(":")[0]).expanduser().parent
        if folder not in self.beside:
            file = folder / SCHEMA
            found = from_json(file.read_text("utf-8", "replace")) if file.is_file() else None
            self.beside[folder] = found if isinstance(found, dict) else None
        return self.beside[folder] if "output" in values else None


def _pairs(given: Source) -> Iterator[EvalRow]:
    """Preference rows; judged and scored answers to one prompt become pairs, as in training."""
    for index, (row, values, _) in enumerate(_rows_of(given, "preference")):
        assert isinstance(row, Preference)
        prompt, answers = Chat(row.prompt, row.tools), (row.chosen, row.rejected)
        yield EvalRow(index=index, prompt=prompt, answers=answers, source=values.get("source"))


def _choices(given: Source) -> Iterator[EvalRow]:
    """Questions with given answers of which one is right."""
    index, reading = 0, given.reading
    for one in given.inputs:
        for record in records(one, reading):
            if isinstance(record, FileText):
                reading.problem("a text among rows of choices", record.origin, "give it as a set of its own", fatal=True)
                continue
            try:
                yield _choice(record, index)
            except BadRow as bad:
                reading.problem(bad.reason, record.origin, bad.fix)
            index += 1


def _choice(record: Record, index: int) -> EvalRow:
    values = record.values
    choices = values.get("choices")
    labels: Sequence[Any] = LETTERS
    if isinstance(choices, dict):  # {"text": [...], "label": [...]}, as in ARC
        labels, choices = choices.get("label") or LETTERS, choices.get("text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one.strip() for one in choices):
        raise BadRow("'choices' is not a list of two or more texts", FIX_CHOICES)
    if len(set(choices)) < len(choices):
        raise BadRow("two choices are the same", "make them differ, or remove one")
    answer = next((values[key] for key in ("answer", "answerKey", "label") if values.get(key) is not None), None)
    right = _right(answer, choices, labels)
    return EvalRow(
        index=index,
        prompt=Chat(_question(values)),
        answers=tuple((Message("assistant", choice),) for choice in choices),
        right=right,
        source=values.get("source"),
    )


def _right(answer: Any, choices: Sequence[str], labels: Sequence[Any]) -> int:
    """The place of the right choice, given as a number from 0, its text, or its letter."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        names = [str(label).strip().upper() for label in labels[: len(choices)]]
        if (letter := answer.strip().rstrip(".").upper()) in names:
            return names.index(letter)
    raise BadRow(f"'answer' {answer!r} is none of the choices", "give its place from 0, its letter, or its text")


def _question(values: Mapping[str, Any]) -> Messages:
    """The turns before the choice: ``messages`` or ``prompt`` as turns, or a ``question`` with any ``context`` above it."""
    turns = values.get("messages", values.get("prompt"))
    if isinstance(turns, list):
        if not all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns) or not turns:
            raise BadRow("the turns of the question are not messages", FIX_CHOICES)
        try:
            return tuple(Message(turn["role"], turn["content"]) for turn in turns)
        except KeyError:
            raise BadRow("a turn has no role", FIX_CHOICES) from None
    question = next((values[key] for key in ("question", "prompt", "instruction") if isinstance(values.get(key), str)), "")
    if not question.strip():
        raise BadRow("no question", FIX_CHOICES)
    context = values.get("context")
    return (Message("user", f"{context}\n\n{question}" if isinstance(context, str) and context.strip() else question),)


READERS = {"text": _texts, "chat": _chats, "commands": _chats, "pairs": _pairs, "choices": _choices}
