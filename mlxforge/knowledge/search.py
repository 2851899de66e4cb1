"""Finding in a knowledge base: chunks by words, ranked by BM25; documents and chunks by what a user calls them."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import Any, NamedTuple

from mlxforge.core.errors import DataError
from mlxforge.knowledge.store import Store

OPEN, CLOSE = "\x02", "\x03"  # around the words found in a snippet
SNIPPET = 32  # words
TOKENIZER = "porter unicode61"  # as in schema.sql
QUOTED = re.compile(r'"([^"]*)"?(\*?)|([^\s"]+)')
CHUNK = re.compile(r"(.+):(\d+)", re.DOTALL)
# Words that nearly every English text has: they take long to rank and rank nothing, so other words go without them.
COMMON = set("a an and are as at be by for from has have in is it its of on or that the this to was were will with".split())
NEAR = 5  # names offered where one does not fit

MOST = 8000  # chunks that are ranked: ranking is slow, about 2 µs a chunk and a word
# A phrase, or the beginning of a word: FTS5 looks at all of its places, once to count it, once to weigh it, once to rank.
SLOW = re.compile(r'"[^"]*[^"\w][^"]*"|\*')
FEW = 10  # matches for each hit that is wanted, in the part of the store that is then indexed anew
SPREAD = 2654435761  # a prime: its multiples are spread evenly over the store

HIT = """
SELECT chunks.id, chunks.document, documents.path, documents.title, chunks."index", chunks.heading, chunks.page, chunks.start,
       chunks."end", coalesce(edits.tokens, chunks.tokens) AS tokens, edits.text IS NOT NULL AS edited
"""
JOINED = "CROSS JOIN documents ON documents.id = chunks.document LEFT JOIN edits ON edits.chunk = chunks.id"
SNIPPED = f"snippet(search, 0, '{OPEN}', '{CLOSE}', '…', {SNIPPET}) AS snippet"
EVERY = f"""
{HIT}, -search.rank AS score, {SNIPPED} FROM search CROSS JOIN chunks ON chunks.id = search.rowid {JOINED}
WHERE search MATCH ? AND documents.removed IS NULL AND coalesce(edits.text, 'x') <> '' ORDER BY search.rank LIMIT ?
"""
# Read without the chunks' rows, which are large. A plus keeps SQLite from handing a term to FTS5, which would rank all.
SAMPLE = """
SELECT search.rowid, -search.rank AS score FROM search
WHERE search MATCH :match AND (search.rowid * 2654435761) % 1000003 % :step = 0 AND +search.rowid NOT IN (
    SELECT id FROM chunks WHERE document IN (SELECT id FROM documents WHERE removed IS NOT NULL)
    UNION ALL SELECT chunk FROM edits WHERE text = ''
)
"""
PART = """
SELECT searched.id, searched.text, searched.heading FROM searched JOIN chunks USING (id)
JOIN documents ON documents.id = chunks.document WHERE searched.id IN (SELECT value FROM json_each(?)) AND removed IS NULL
"""
NARROW = "AND +search.rowid IN (SELECT rowid FROM search WHERE search MATCH :narrow)"
ONE = f"{HIT}, coalesce(edits.text, chunks.text) AS text FROM chunks {JOINED} WHERE chunks.id = ?"


class Found(NamedTuple):
    """What a search found.

    Attributes:
        hits: the chunks, the best first.
        matches: chunks of the index that match, those out of force included.
        ranked: at most how many of them were ranked; where it is less than ``matches``, a better one can be among the others.
    """

    hits: list[dict[str, Any]]
    matches: int
    ranked: int


class Place(NamedTuple):
    """A document by its id or, with ``chunk``, one of its chunks."""

    document: int
    chunk: int | None = None


def terms_of(text: str) -> list[str]:
    """A user's words as terms of FTS5; ``"a phrase"`` and ``begin*`` are kept, whatever else FTS5 has a meaning for is text.

    Words of COMMON are passed over where there are others.

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
    if not terms and not common:
        raise DataError("no word to search for", where=repr(text), fix="give words: mlxforge kb search kb.sqlite mill wheel")
    return list(dict.fromkeys(terms or common))


def search(store: Store, text: str, *, limit: int = 10, any_word: bool = False, raw: bool = False) -> Found:
    """The chunks that match best, a dict each: where it lies, ``score`` (BM25, higher is better), ``snippet``.

    The found words in a snippet stand between ``OPEN`` and ``CLOSE``. Of more than MOST chunks that match, some are ranked:
    with ``any_word`` those that have the rarest of the words, else, and where these are too many, some spread over the store;
    of phrases and beginnings of words fewer, and scored as if there were no others.

    Args:
        any_word: one of the words is enough.
        raw: ``text`` is an FTS5 expression.

    Raises:
        DataError: no word, or an expression that FTS5 does not understand.
    """
    terms = [text] if raw else terms_of(text)
    try:
        return _found(store, terms, limit, " OR " if any_word else " AND ")
    except sqlite3.OperationalError as error:
        if not raw:
            raise
        fix = "without --raw it is plain words"
        raise DataError(f"no FTS5 expression: {str(error).removeprefix('fts5: ')}", where=repr(text), fix=fix) from error


def _found(store: Store, terms: list[str], limit: int, between: str) -> Found:
    match = rank = wanted = between.join(terms)
    matches = candidates = ranked = _matches(store, match)
    one = between == " AND " or len(terms) == 1
    if matches <= MOST:
        hits = [dict(row) for row in store.connection.execute(EVERY, (match, limit))]
    elif one and any(map(SLOW.search, terms)) and (part := _part(store, match, matches, limit)):
        hits, ranked = part
    else:
        if between == " OR " and len(terms) > 1:
            rank, wanted, candidates = _rarest(store, terms)
        step = -(-candidates // MOST)
        ranked = candidates // step
        hits = _sampled(store, (match, rank, wanted), step, limit)
    return Found([{**hit, "edited": bool(hit["edited"])} for hit in hits], matches, ranked)


def _matches(store: Store, match: str) -> int:
    return int(store.connection.execute("SELECT count(*) FROM search WHERE search MATCH ?", (match,)).fetchone()[0])


def _rarest(store: Store, terms: list[str]) -> tuple[str, str, int]:
    """The words that rank; the rarest of them, as many as MOST chunks have, but one at least; how many chunks those are.

    A word that over half of all chunks have is no weight to BM25 as FTS5 computes it.
    """
    counts = sorted((count, term) for term in terms if (count := _matches(store, term)))
    half = store.connection.execute("SELECT count(*) FROM search_docsize").fetchone()[0] // 2
    rank = [term for number, (count, term) in enumerate(counts) if count <= half or not number]
    chosen, total = [counts[0][1]], counts[0][0]
    for count, term in counts[1:]:
        if total + count > MOST:
            break
        chosen.append(term)
        total += count
    return " OR ".join(rank), " OR ".join(chosen), total


def _part(store: Store, match: str, matches: int, limit: int) -> tuple[list[dict[str, Any]], int] | None:
    """The best of a part of the store, and how many of it match; None where that is too few. Scores are those of the part."""
    count, last = store.connection.execute("SELECT count(*), max(id) FROM search_docsize").fetchone()
    size = FEW * limit * count // matches
    if size > MOST:
        return None
    chosen = json.dumps(sorted({number * SPREAD % last + 1 for number in range(size)}))
    with closing(_memory(tuple(row) for row in store.connection.execute(PART, (chosen,)))) as part:
        ranked = int(part.execute("SELECT count(*) FROM search WHERE search MATCH ?", (match,)).fetchone()[0])
        query = f"SELECT rowid, -rank, {SNIPPED} FROM search WHERE search MATCH ? ORDER BY rank LIMIT ?"
        best = part.execute(query, (match, limit)).fetchall() if ranked >= limit else []
    if len(best) < limit:
        return None
    return [{**_one(store, number), "score": score, "snippet": snippet} for number, score, snippet in best], ranked


def _one(store: Store, number: int) -> dict[str, Any]:
    found = dict(store.connection.execute(ONE, (number,)).fetchone())
    del found["text"]
    return found


def _sampled(store: Store, terms: tuple[str, str, str], step: int, limit: int) -> list[dict[str, Any]]:
    """The best of every ``step``-th chunk; ``terms``: what to show, what to rank by, what a chunk must have to be ranked."""
    match, rank, wanted = terms
    values = {"match": rank, "narrow": wanted, "step": step, "limit": limit}
    query = SAMPLE + (NARROW if wanted != rank else "")
    best = store.connection.execute(f"{query} ORDER BY +search.rank LIMIT :limit", values).fetchall()
    hits = [{**dict(store.connection.execute(ONE, (row["rowid"],)).fetchone()), "score": row["score"]} for row in best]
    for hit, snippet in zip(hits, _snippets([(hit["text"], hit["heading"]) for hit in hits], match), strict=True):
        del hit["text"]
        hit["snippet"] = snippet
    return hits


def _snippets(texts: list[tuple[str, str]], match: str) -> list[str]:
    """From an index of these texts alone: in the whole one FTS5 would go through all that matches once more."""
    with closing(_memory((number, *text) for number, text in enumerate(texts))) as few:
        return [row[0] for row in few.execute(f"SELECT {SNIPPED} FROM search WHERE search MATCH ? ORDER BY rowid", (match,))]


def _memory(rows: Iterable[tuple[Any, ...]]) -> sqlite3.Connection:
    """An index in memory of rows of (id, text, heading)."""
    few = sqlite3.connect(":memory:")
    few.execute(f"CREATE VIRTUAL TABLE search USING fts5(text, heading, tokenize = '{TOKENIZER}')")
    few.executemany("INSERT INTO search (rowid, text, heading) VALUES (?, ?, ?)", rows)
    return few


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
