"""A knowledge base as its readers open it: never writing, never in the way of who writes, or refused in one line."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlxforge.core.errors import DataError

# In the file's header: "mlxf".
APPLICATION = 0x6D6C7866
VERSION = 1
WAIT = 5.0  # seconds for another process to finish its transaction


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """What SQLite says, as one line."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            what = "another process is writing this knowledge base"
            raise DataError(what, where=str(path), fix="wait for its end") from error
        raise DataError(f"the knowledge base cannot be used: {error}", where=str(path)) from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a broken constraint is our mistake, not the file's
            raise
        raise DataError(f"not a whole knowledge base: {error}", where=str(path), fix="restore it, or ingest anew") from error


@contextmanager
def open_readonly(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write, with rows by name; one transaction sees one state, whoever writes meanwhile.

    Raises:
        DataError: no knowledge base, or one of another version.
    """
    with store_errors(path):
        connection = _connect(path)
    try:
        with store_errors(path):
            connection.row_factory = sqlite3.Row
            if (version := version_of(connection, path)) < VERSION:
                what = f"a knowledge base of version {version}, this mlxforge reads {VERSION}"
                raise DataError(what, where=str(path), fix=f"bring it up to date: mlxforge ingest PATH --into {path}")
        yield connection
    finally:
        connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    # Opened as a writer would be, so that the last to close it leaves no -wal and -shm files behind. In a folder that cannot be
    # written those cannot be made: a file without pending changes is then read as one that nobody changes.
    name = path.absolute().as_uri()
    connection = sqlite3.connect(f"{name}?mode=rw", uri=True, timeout=WAIT, isolation_level=None)
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        pending = path.with_name(path.name + "-wal")
        if "locked" in str(error) or (pending.exists() and pending.stat().st_size):
            raise
        connection = sqlite3.connect(f"{name}?immutable=1", uri=True, isolation_level=None)
    return connection


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a knowledge base's schema.

    Raises:
        DataError: no knowledge base, or one of a newer version.
    """
    version, application = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("user_version", "application_id")
    )
    if application != APPLICATION:
        raise DataError("a SQLite file, but no knowledge base of mlxforge", where=str(path), fix="name another file")
    if version > VERSION:
        what = f"a knowledge base of version {version}, this mlxforge knows {VERSION}"
        raise DataError(what, where=str(path), fix="pip install --upgrade mlxforge")
    return version


def documents(connection: sqlite3.Connection) -> list[tuple[int, str]]:
    """(id, path) of every document in force, by path."""
    query = "SELECT id, path FROM documents WHERE removed IS NULL ORDER BY path"
    return [(row[0], row[1]) for row in connection.execute(query)]


def text_of(connection: sqlite3.Connection, document: int) -> Iterator[str]:
    """A document's chunks in force, in order."""
    query = 'SELECT text FROM current WHERE document = ? ORDER BY "index"'
    return (row[0] for row in connection.execute(query, (document,)))


def content_hash(path: Path) -> str:
    """SHA-256 of the texts in force: the file's own bytes neither hold what is pending nor stay the same for the same text.

    Raises:
        DataError: no knowledge base.
    """
    whole = hashlib.sha256()
    with open_readonly(path) as connection, store_errors(path):
        connection.execute("BEGIN")
        for number, _ in documents(connection):
            one = hashlib.sha256()
            for text in text_of(connection, number):
                one.update(text.encode("utf-8", "surrogatepass"))
            whole.update(one.digest())
    return whole.hexdigest()
