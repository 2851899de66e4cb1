"""Finding in a knowledge base: chunks by words, ranked by BM25; documents and chunks by what a user calls them."""

from __future__ import annotations

import re
import sqlite3
from typing import Any, NamedTuple

from mlxforge.core.errors import DataError
from mlxforge.knowledge.store import Store

OPEN, CLOSE = "\x02", "\x03"  # around the words found in a snippet
SNIPPET = 32  # words
QUOTED = re.compile(r'"([^"]*)"?(\*?)|([^\s"]+)')
CHUNK = re.compile(r"(.+):(\d+)", re.DOTALL)
# Words that nearly every English text has: they take long to rank and rank nothing, so other words go without them.
COMMON = set("a an and are as at be by for from has have in is it its of on or that the this to was were will with".split())
NEAR = 5  # names offered where one does not fit

HITS = f"""
SELECT chunks.id, chunks.document, documents.path, documents.title, chunks."index", chunks.heading, chunks.page, chunks.start,
       chunks."end", coalesce(edits.tokens, chunks.tokens) AS tokens, edits.text IS NOT NULL AS edited,
       -search.rank AS score, snippet(search, 0, '{OPEN}', '{CLOSE}', '…', {SNIPPET}) AS snippet
FROM search CROSS JOIN chunks ON chunks.id = search.rowid CROSS JOIN documents ON documents.id = chunks.document
LEFT JOIN edits ON edits.chunk = chunks.id
WHERE search MATCH ? AND documents.removed IS NULL AND coalesce(edits.text, 'x') <> '' ORDER BY search.rank LIMIT ?
"""


class Place(NamedTuple):
    """A document by its id or, with ``chunk``, one of its chunks."""

    document: int
    chunk: int | None = None


def match_of(text: str, *, any_word: bool = False) -> str:
    """A user's words as an FTS5 expression: every word must occur, or any; ``"a phrase"`` and ``begin*`` are kept.

    Words of COMMON are passed over where there are others. Whatever else FTS5 has a meaning for is plain text here.

    Raises:
        DataError: no word to look for.
    """
    terms: list[str] = []
    common: list[str] = []
    for phrase, star, word in QUOTED.findall(text.replace("\0", " ")):
        bare = phrase or word.rstrip("*")
        if any(letter.isalnum() for letter in bare):
            term = f'"{bare}"' + ("*" if star or (word and word != bare) else "")
            (common if word.lower() in COMMON else terms).append(term)
    terms = terms or common
    if not terms:
        raise DataError("no word to search for", where=repr(text), fix="give words: mlxforge kb search kb.sqlite mill wheel")
    return (" OR " if any_word else " AND ").join(terms)


def search(store: Store, text: str, *, limit: int = 10, any_word: bool = False, raw: bool = False) -> list[dict[str, Any]]:
    """The chunks that match best, a dict each: where it lies, ``score`` (BM25, higher is better), ``snippet``.

    The found words in a snippet stand between ``OPEN`` and ``CLOSE``.

    Args:
        any_word: one of the words is enough.
        raw: ``text`` is an FTS5 expression.

    Raises:
        DataError: no word, or an expression that FTS5 does not understand.
    """
    match = text if raw else match_of(text, any_word=any_word)
    try:
        found = store.connection.execute(HITS, (match, limit))
        return [{**dict(row), "edited": bool(row["edited"])} for row in found]
    except sqlite3.OperationalError as error:
        if not raw:
            raise
        fix = "without --raw it is plain words"
        raise DataError(f"no FTS5 expression: {str(error).removeprefix('fts5: ')}", where=repr(text), fix=fix) from error


def find(store: Store, name: str) -> Place:
    """What a user calls a document (id, path, or the end of a path) or a chunk (DOCUMENT:INDEX).

    Raises:
        DataError: there is none, or several.
    """
    found = _documents(store, name)
    if len(found) == 1:
        return Place(found[0][0])
    part = CHUNK.fullmatch(name)
    if not found and part and len(within := _documents(store, part[1])) == 1:
        return Place(within[0][0], _index(store, within[0], int(part[2])))
    several = found or (within if part else [])
    if several:
        names = ", ".join(path for _, path in several[:NEAR])
        what = f"several documents end like that: {names}" + (", ..." if len(several) > NEAR else "")
        raise DataError(what, where=name, fix="name one by its id or more of its path")
    raise DataError(f"no document '{name}'", where=str(store.path), fix=_offer(store, part[1] if part else name))


def _documents(store: Store, name: str) -> list[tuple[int, str]]:
    """(id, path) of the document with this path or id, else of those whose path ends so."""
    exact = "SELECT id, path FROM documents WHERE path = ?"
    by_id = "SELECT id, path FROM documents WHERE id = ?"
    ending = "SELECT id, path FROM documents WHERE substr(path, -length(?1) - 1) = '/' || ?1 ORDER BY path LIMIT 100"
    number = int(name) if name.isascii() and name.isdecimal() and len(name) < 19 else -1
    for query, value in ((exact, name), (by_id, number), (ending, name.removeprefix("./"))):
        if found := store.rows(query, (value,)):
            return [(row["id"], row["path"]) for row in found]
    return []


def _index(store: Store, document: tuple[int, str], index: int) -> int:
    last = store.rows('SELECT max("index") AS last FROM chunks WHERE document = ?', document[:1])[0]["last"]
    if last is None or index > last:
        fix = "it has none" if last is None else f"its chunks are 0 to {last}"
        raise DataError(f"no chunk {index}", where=document[1], fix=fix)
    return index


def _offer(store: Store, name: str) -> str:
    """Documents with a part of the name in their path."""
    word = name.rpartition("/")[2].partition(".")[0]
    query = "SELECT path FROM documents WHERE instr(lower(path), lower(?)) AND ? <> '' ORDER BY path LIMIT ?"
    near = [row["path"] for row in store.rows(query, (word, word, NEAR))]
    return f"near: {', '.join(near)}" if near else f"what there is: mlxforge kb list {store.path}"
