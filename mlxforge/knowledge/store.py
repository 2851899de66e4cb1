"""The store: one SQLite file with documents, chunks, edits and a search index; opened whole or refused in one line."""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from mlxforge.core.errors import DataError
from mlxforge.data.kb import APPLICATION, VERSION, WAIT, open_readonly, store_errors, text_of, version_of

MIGRATIONS = ("schema.sql",)  # the script that leads to version 1, then to version 2, …
assert len(MIGRATIONS) == VERSION


@dataclass(frozen=True)
class Document:
    """A document before it is stored; ``text`` of its chunks joined is the cleaned document."""

    path: str
    root: str
    hash: str
    title: str
    type: str
    language: str | None
    bytes: int
    settings: str
    cleaned: str


class Chunk(NamedTuple):
    """A part of a document. ``start`` and ``end`` are its span in the cleaned text, in characters; ``tokens`` count the
    passage, which begins ``overlap`` characters earlier."""

    text: str
    tokens: int
    heading: str
    page: int | None
    start: int
    end: int
    overlap: int


class Store:
    """An open knowledge base. Use :func:`open_store`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self.connection = path, connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is kept, or nothing.

        Raises:
            DataError: another process holds the store for longer than five seconds, or the disk is full.
        """
        with store_errors(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Iterable[Any] = ()) -> list[dict[str, Any]]:
        """The answer to a query, a dict a row."""
        with store_errors(self.path):
            return [dict(row) for row in self.connection.execute(query, tuple(values))]

    def stream(self, query: str, values: Iterable[Any] = ()) -> Iterator[dict[str, Any]]:
        """The same, read as it is used."""
        with store_errors(self.path):
            for row in self.connection.execute(query, tuple(values)):
                yield dict(row)

    def put(self, document: Document, chunks: Iterable[Chunk]) -> int:
        """Adds a document or replaces what lies under its path; returns its id. To be called while :meth:`writing`."""
        return self.put_all([(document, chunks)])[0]

    def put_all(self, documents: Iterable[tuple[Document, Iterable[Chunk]]]) -> list[int]:
        """Adds or replaces documents; returns their ids. To be called while :meth:`writing`.

        They come into the index in one statement, not by a trigger: at the end of each statement of a trigger FTS5 writes out
        what it has gathered, which is four times as slow.
        """
        done = [self._put(document, chunks) for document, chunks in documents]
        if not done:
            return []
        query = "INSERT INTO search (rowid, text, heading) SELECT id, text, heading FROM chunks WHERE id > ?"
        self.connection.execute(query, (min(last for _, last in done),))
        return [number for number, _ in done]

    def _put(self, document: Document, chunks: Iterable[Chunk]) -> tuple[int, int]:
        """All of it but the index; returns the document's id and the highest id of a chunk before the new ones.

        The id of a document stays, and so do its chunks that are still in it, with their edits. An edit of a chunk that is not
        goes to the table ``orphans``.
        """
        values = asdict(document) | {"added": now(), "removed": None}
        names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
        changes = ", ".join(f"{name} = excluded.{name}" for name in values)
        query = f"INSERT INTO documents ({names}) VALUES ({marks}) ON CONFLICT (path) DO UPDATE SET {changes} RETURNING id"
        number = int(self.connection.execute(query, values).fetchone()[0])
        new = list(enumerate(chunks))
        before = self.connection.execute('SELECT id, text, heading FROM chunks WHERE document = ? ORDER BY "index"', (number,))
        if old := before.fetchall():
            new = self._keep(number, old, new)
        last = int(self.connection.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()[0])
        self.connection.executemany(
            'INSERT INTO chunks (document, "index", text, tokens, heading, page, start, "end", overlap) '
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((number, index, *chunk) for index, chunk in new),
        )
        return number, last

    def _keep(self, document: int, old: list[sqlite3.Row], new: list[tuple[int, Chunk]]) -> list[tuple[int, Chunk]]:
        """Moves the old chunks that are among the new ones to their places and drops the others; returns what is missing."""
        known: dict[tuple[str, str], deque[int]] = defaultdict(deque)
        for row in old:
            known[row["text"], row["heading"]].append(row["id"])
        moved, missing = [], []
        for index, chunk in new:
            if same := known.get((chunk.text, chunk.heading)):
                moved.append((index, chunk.tokens, chunk.page, chunk.start, chunk.end, chunk.overlap, same.popleft()))
            else:
                missing.append((index, chunk))
        gone = [(number,) for numbers in known.values() for number in numbers]
        run = self.connection.executemany
        run(
            "INSERT INTO orphans (document, original, text, edited) SELECT document, chunks.text, edits.text, edited "
            "FROM edits JOIN chunks ON chunks.id = edits.chunk WHERE chunk = ?",
            gone,
        )
        run("DELETE FROM chunks WHERE id = ?", gone)
        # No two chunks of a document have one place, not even for a moment.
        self.connection.execute('UPDATE chunks SET "index" = -1 - "index" WHERE document = ?', (document,))
        run('UPDATE chunks SET "index" = ?, tokens = ?, page = ?, start = ?, "end" = ?, overlap = ? WHERE id = ?', moved)
        return missing

    def about(self, name: str) -> str | None:
        """What the store says of itself, such as the ``model`` whose tokenizer counted."""
        found = self.rows("SELECT value FROM about WHERE name = ?", (name,))
        return str(found[0]["value"]) if found else None

    def note(self, name: str, value: str) -> None:
        """Notes something of the whole store. To be called while :meth:`writing`."""
        self.connection.execute("INSERT OR REPLACE INTO about (name, value) VALUES (?, ?)", (name, value))

    def text(self, document: int) -> str:
        """A document's text in force: its chunks joined, edits included."""
        with store_errors(self.path):
            return "".join(text_of(self.connection, document))


@contextmanager
def open_store(path: Path, *, create: bool = False, readonly: bool = False) -> Iterator[Store]:
    """The knowledge base at ``path``; a new one where ``create`` is true and there is none.

    ``readonly`` opens one that cannot be written, such as one in a folder of somebody else.

    Raises:
        DataError: no such file, no knowledge base, one of a newer version, or one that another process holds.
    """
    if not path.is_file():
        if not create or path.exists():
            raise DataError("no knowledge base here", where=str(path), fix=f"make one: mlxforge ingest PATH --into {path}")
        if not path.parent.is_dir():
            raise DataError("no such folder", where=str(path.parent), fix="make it first, or name another place")
    if readonly:
        with open_readonly(path) as connection:
            yield Store(path, connection)
        return
    with store_errors(path):
        connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
    try:
        store = Store(path, connection)
        with store_errors(path):
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(store, create)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        yield store
    finally:
        connection.close()


def _migrate(store: Store, create: bool) -> None:
    """Brings the schema to this version, in one transaction."""
    connection = store.connection
    empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    version = 0 if empty and create else version_of(connection, store.path)
    if version == VERSION:
        return
    with store.writing():
        for number in range(version, VERSION):
            for statement in statements((Path(__file__).parent / MIGRATIONS[number]).read_text(encoding="utf-8")):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")


def statements(script: str) -> Iterator[str]:
    """The statements of an SQL script; ``executescript`` would end the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.fromtimestamp(time.time(), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
