"""Chunks of a Chroma store, read from its SQLite file: the package itself, hundreds of megabytes, is not needed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from mlxforge.core.errors import DataError, did_you_mean

FILE = "chroma.sqlite3"
TEXT = "chroma:document"
HEADERS = ("Header 1", "Header 2", "Header 3", "Header 4")  # keys of LangChain's splitter of Markdown
RECORDS = """
SELECT embeddings.id, embeddings.embedding_id, data.key, data.string_value, data.int_value
FROM embeddings JOIN segments ON segments.id = embeddings.segment_id AND segments.scope = 'METADATA'
JOIN embedding_metadata AS data ON data.id = embeddings.id
WHERE segments.collection = ? ORDER BY embeddings.id
"""


class Record(NamedTuple):
    """A chunk of the store: its document by its key ``source``, empty where it has none."""

    id: str
    source: str
    text: str
    heading: str
    page: int | None


def read_chroma(folder: Path, collection: str) -> list[Record]:
    """The chunks of a collection in the order in which they were added; those without a text are left out.

    Raises:
        DataError: no Chroma store, one of an unknown layout, or no such collection.
    """
    path = folder / FILE
    if not path.is_file():
        raise DataError("no Chroma store here", where=str(folder), fix=f"the folder that holds {FILE}")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT id, name FROM collections").fetchall()
            names = {str(name): number for number, name in found}
            if len(names) < len(found):
                what = "two databases of this store have a collection of the same name"
                raise DataError(what, where=str(folder), fix="copy the one you mean to a store of its own")
            if collection not in names:
                raise DataError(f"no collection '{collection}'", where=str(folder), fix=did_you_mean(collection, names))
            return [_record(*row) for row in _grouped(connection.execute(RECORDS, (names[collection],))) if row[1].get(TEXT)]
    except sqlite3.Error as error:
        fix = "written by Chroma 0.4 or later?"
        raise DataError(f"not a Chroma store that can be read: {error}", where=str(path), fix=fix) from error


def _grouped(rows: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, values by key) of each record."""
    last, name, values = None, "", dict[str, Any]()
    for number, record, key, text, integer in rows:
        if number != last and last is not None:
            yield name, values
            values = {}
        last, name = number, record
        values[key] = text if text is not None else integer
    if last is not None:
        yield name, values


def _record(name: str, values: dict[str, Any]) -> Record:
    label = str(values.get("page_label") or "")  # `page` counts from 0 in some programs, from 1 in others
    heading = " > ".join(str(values[key]) for key in HEADERS if values.get(key))
    return Record(name, str(values.get("source") or ""), str(values[TEXT]), heading, int(label) if label.isdecimal() else None)
