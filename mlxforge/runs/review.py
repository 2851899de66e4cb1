"""Rows that a person looks at: each with the text it came from, and what the person says of it, kept at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mlxforge.core.errors import ConfigError, DataError
from mlxforge.core.files import disk_errors, write_atomic
from mlxforge.data.formats import BadRow, Detector
from mlxforge.data.formats.rows import REVIEW
from mlxforge.data.raw import LINES
from mlxforge.data.readers import Reading, json_lines, plain, reported
from mlxforge.knowledge.store import Store, open_store

ACCEPT, EDIT, REJECT = "accept", "edit", "reject"
SAYS = {ACCEPT: "accepted", EDIT: "accepted", REJECT: "rejected"}
ONLY = ("accepted", "rejected")
PERSON = "review"  # the gate of rows that a person refused
# A gate that refused the row stays named; a person stands in for one where none did.
GATES = {
    "accepted": "UPDATE rows SET verdict = ?, reviewed = ?, content = ?, gate = nullif(gate, 'review') WHERE id = ?",
    "rejected": "UPDATE rows SET verdict = ?, reviewed = ?, content = ?, gate = coalesce(gate, 'review') WHERE id = ?",
}
# What jobs keep on their way is no row of training data.
INNER = ("entities",)
MARK = b'"review":{"verdict":'  # as FileRows writes it
MAGIC = b"SQLite format 3\x00"


@dataclass(frozen=True)
class Row:
    """A row to look at. ``verdict`` and ``reason`` are the gates'; ``reviewed`` is a key of SAYS where a person looked."""

    place: str
    values: dict[str, Any]
    verdict: str = ""
    reason: str = ""
    reviewed: str = ""


@dataclass(frozen=True)
class Passage:
    """The chunk that a row came from, the row's span in it, and where it stands; ``problem`` where there is none to show."""

    text: str = ""
    span: tuple[int, int] = (0, 0)
    place: str = ""
    problem: str = ""


class Rows(Protocol):
    """Rows under review, by number from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Row: ...

    def verdict(self, number: int) -> tuple[str, str]:
        """What the gates and what a person said."""
        ...

    def say(self, number: int, word: str, values: Mapping[str, Any]) -> None:
        """Keeps a key of SAYS and the row as it is now."""
        ...


class FileRows:
    """The rows of a file of JSON lines. What is said of a row stands under its key ``review``, and the file is written
    anew each time; all other lines keep their bytes.

    Raises:
        DataError: no rows, or bad ones.
    """

    def __init__(self, path: Path) -> None:
        self.path, reading = path, Reading()
        self.rows: list[dict[str, Any]] = []
        self.lines: list[str] = []
        with reported(path, reading):
            for record, line in json_lines(path, reading):
                self.rows.append(record.values)
                self.lines.append(line)
        reading.check()
        self._stamp = self._seen()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        values = {key: value for key, value in self.rows[number].items() if key != REVIEW}
        return Row(f"{self.path.name}:{number + 1}", values, *self._said(number))

    def _said(self, number: int) -> tuple[str, str, str]:
        review = self.rows[number].get(REVIEW)
        said = review.get("verdict") if isinstance(review, dict) else None
        return "", "", said if said in SAYS else ""

    def verdict(self, number: int) -> tuple[str, str]:
        """See :class:`Rows`."""
        return "", self._said(number)[2]

    def say(self, number: int, word: str, values: Mapping[str, Any]) -> None:
        """See :class:`Rows`.

        Raises:
            DataError: somebody else has written the file.
        """
        if self._seen() != self._stamp:
            raise DataError("was changed by another program meanwhile", where=str(self.path), fix="review it again")
        row = {**values, REVIEW: {"verdict": word}}
        lines = self.lines.copy()
        lines[number] = msgspec.json.encode(row).decode() + "\n"
        write_atomic(self.path, "".join(line if line.endswith("\n") else line + "\n" for line in lines))
        self.rows[number], self.lines, self._stamp = row, lines, self._seen()

    def _seen(self) -> tuple[int, int, int]:
        with disk_errors(self.path):
            found = self.path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size


class StoreRows:
    """The rows of the jobs in a knowledge base: those that the gates refused too."""

    def __init__(self, store: Store) -> None:
        self.store = store
        query = (
            "SELECT rows.id, rows.verdict, rows.reviewed FROM rows JOIN tasks ON tasks.id = rows.task "
            f"JOIN jobs ON jobs.id = tasks.job WHERE jobs.kind NOT IN ({', '.join('?' * len(INNER))}) "
            "ORDER BY tasks.job, tasks.number, rows.number"
        )
        self.index = [(row["id"], row["verdict"], row["reviewed"] or "") for row in store.rows(query, INNER)]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Row:
        query = (
            "SELECT rows.*, jobs.kind, jobs.id AS job FROM rows JOIN tasks ON tasks.id = rows.task "
            "JOIN jobs ON jobs.id = tasks.job WHERE rows.id = ?"
        )
        row = next(iter(self.store.rows(query, (self.index[number][0],))), None)
        if row is None:
            raise DataError("a row is gone: its job was begun anew", where=str(self.store.path), fix="review it again")
        reason = ": ".join(part for part in (row["gate"], row["reason"]) if part and part != PERSON)
        place = f"{row['kind']} job {row['job']}, row {number + 1}"
        return Row(place, msgspec.json.decode(row["content"]), row["verdict"], reason, row["reviewed"] or "")

    def verdict(self, number: int) -> tuple[str, str]:
        """See :class:`Rows`."""
        return self.index[number][1:]

    def say(self, number: int, word: str, values: Mapping[str, Any]) -> None:
        """See :class:`Rows`. The gate's reason stays."""
        key, verdict = self.index[number][0], SAYS[word]
        content = msgspec.json.encode(values).decode()
        with self.store.writing() as connection:
            changed = connection.execute(GATES[verdict], (verdict, word, content, key))
            if changed.rowcount != 1:
                raise DataError("a row is gone: its job was begun anew", where=str(self.store.path), fix="review it again")
        self.index[number] = (key, verdict, word)


class Review:
    """A sitting: the rows that are wanted, one after the other.

    Args:
        only: rows that the gates ``accepted`` or ``rejected``.
        again: rows that a person has seen too.
    """

    def __init__(self, name: str, rows: Rows, store: Store | None, *, only: str | None = None, again: bool = False) -> None:
        self.name, self.rows, self.store = name, rows, store
        verdicts = [rows.verdict(number) for number in range(len(rows))]
        self.wanted = [
            number for number, (gates, person) in enumerate(verdicts) if (again or not person) and only in (None, gates)
        ]
        self.detector = Detector()
        self.stored = isinstance(rows, StoreRows)

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, number: int) -> Row:
        return self.rows[self.wanted[number]]

    def said(self) -> Counter[str]:
        """How many of all rows were accepted, edited, rejected by a person; the others under the empty key."""
        return Counter(self.rows.verdict(number)[1] for number in range(len(self.rows)))

    def say(self, number: int, word: str) -> None:
        """Keeps what a person says of a row as it stands."""
        self.rows.say(self.wanted[number], word, self[number].values)

    def edit(self, number: int, text: str) -> str:
        """Puts the JSON in ``text`` in a row's place; returns what is wrong with it, and then changes nothing."""
        try:
            values = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            return f"broken JSON: {plain(error)}"
        if not isinstance(values, dict):
            return "a row is an object with keys"
        if wrong := self._misread(self[number].values, values):
            return wrong
        self.rows.say(self.wanted[number], EDIT, values)
        return ""

    def _misread(self, before: dict[str, Any], values: dict[str, Any]) -> str:
        """Why training would not read a row as it read the one before; empty where it would, or read that one neither."""
        try:
            known = self.detector(before)
            known.read(before)
        except BadRow:
            return ""
        try:
            found = self.detector(values)
            found.read(values)
        except BadRow as bad:
            return str(bad)
        return "" if found.name == known.name else f"these are {found.name} rows now, not {known.name}"

    def passage(self, row: Row) -> Passage:
        """What a row came from, as its provenance says."""
        source = row.values.get("source")
        if not isinstance(source, dict) or not isinstance(source.get("document"), str):
            return Passage(problem="the row does not say what it came from")
        place = source["document"]
        if self.store is None:
            return Passage(place=place, problem="--kb FILE shows the text that a row came from")
        query = 'SELECT * FROM current WHERE path = ? AND "index" = ?'
        found = next(iter(self.store.rows(query, (place, source.get("chunk")))), None)
        if found is None:
            return Passage(place=place, problem="this chunk is no longer in the knowledge base")
        page = f", page {found['page']}" if found["page"] else ""
        heading = f" · {found['heading']}" if found["heading"] else ""
        place = f"{Path(place).name}, chunk {found['index']}{page}{heading}"
        return Passage(found["text"], _inside(source.get("span"), found), place)


def _inside(span: Any, chunk: Mapping[str, Any]) -> tuple[int, int]:
    """A span of the cleaned document as one of a chunk; (0, 0) where it says no more than the chunk."""
    if chunk["edited"] or not isinstance(span, Sequence) or len(span) != 2 or not all(isinstance(at, int) for at in span):
        return 0, 0
    begin, end = (min(max(at, chunk["start"]), chunk["end"]) - chunk["start"] for at in span)
    return (0, 0) if (begin, end) == (0, chunk["end"] - chunk["start"]) or begin >= end else (begin, end)


def keep_reviews(files: Iterable[Path], force: bool) -> None:
    """Stops before a file is written anew that holds what a person said.

    Raises:
        DataError: there is such a file, and no ``force``.
    """
    for file in files:
        if force or not file.is_file():
            continue
        with disk_errors(file), open(file, "rb") as lines:
            marked = any(MARK in line for line in lines)
        if marked:
            fix = "--force replaces it; mlxforge synth review KB keeps verdicts and edits in the knowledge base"
            raise DataError("holds what you said in review", where=str(file), fix=fix)


@contextmanager
def open_review(path: Path, kb: Path | None = None, *, only: str | None = None, again: bool = False) -> Iterator[Review]:
    """The rows of a file of JSON lines or of a knowledge base, ready to be looked at.

    Args:
        kb: the knowledge base that the rows of a file came from.

    Raises:
        ConfigError: ``kb`` or ``only`` where they mean nothing.
        DataError: no such file, bad rows, or none at all.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix="name a .jsonl file or a knowledge base")
    with disk_errors(path), open(path, "rb") as file:
        stored = file.read(len(MAGIC)) == MAGIC
    if not stored and path.suffix.lower() not in LINES:
        raise DataError("neither JSON lines nor a knowledge base", where=str(path), fix="name a .jsonl file")
    if stored and kb is not None:
        raise ConfigError("a knowledge base holds the text of its own rows", where="--kb", fix="leave it out")
    if not stored and only:
        raise ConfigError("the verdicts of the gates are in the knowledge base", where="--only", fix="name that instead")
    with ExitStack() as stack:
        held = path if stored else kb
        store = stack.enter_context(open_store(held)) if held else None
        rows: Rows = StoreRows(store) if stored and store else FileRows(path)
        if not len(rows):
            fix = "make some: mlxforge synth qa" if stored else ""
            raise DataError("no rows", where=str(path), fix=fix)
        yield Review(path.name, rows, store, only=only, again=again)
