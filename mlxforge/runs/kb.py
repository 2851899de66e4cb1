"""Looking into a knowledge base and changing it by hand: what the commands ``kb`` show, as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import DataError
from mlxforge.data.output import new_file
from mlxforge.knowledge.count import counter_of
from mlxforge.knowledge.search import CLOSE, OPEN, Found, Place, find
from mlxforge.knowledge.search import search as find_words
from mlxforge.knowledge.store import Store, now, open_store
from mlxforge.models.hub import resolve_model

MARKS = (OPEN, CLOSE)  # around the words found in a snippet
TOKENIZER = ["tokenizer.json"]
KINDS = ("chunks", "documents", "text")
SUFFIXES = {".jsonl": "chunks", ".ndjson": "chunks", ".txt": "text", ".md": "text"}
BIN_WIDTHS = (1, 2, 5)  # of a histogram, times a power of ten
BINS = 16

COUNTED = """
SELECT documents.id, documents.path, documents.title, documents.type, documents.language, documents.added, documents.bytes,
       documents.removed, counts.chunks, counts.tokens, counts.edits
FROM documents JOIN (
    SELECT documents.id, count(chunks.id) - count(CASE WHEN edits.text = '' THEN 1 END) AS chunks,
           coalesce(sum(CASE WHEN edits.text = '' THEN 0 ELSE coalesce(edits.tokens, chunks.tokens) END), 0) AS tokens,
           count(edits.chunk) AS edits
    FROM documents LEFT JOIN chunks ON chunks.document = documents.id LEFT JOIN edits ON edits.chunk = chunks.id
    GROUP BY documents.id
) AS counts ON counts.id = documents.id
"""
CHUNK = """
SELECT chunks.id, chunks.document, documents.path, documents.title, chunks."index", chunks.heading, chunks.page, chunks.start,
       chunks."end", chunks.overlap, coalesce(edits.tokens, chunks.tokens) AS tokens, coalesce(edits.text, chunks.text) AS text,
       edits.text IS NOT NULL AS edited, edits.edited AS edited_at, chunks.text AS original, documents.removed
FROM chunks JOIN documents ON documents.id = chunks.document LEFT JOIN edits ON edits.chunk = chunks.id
"""


def list_documents(path: Path, filters: Sequence[str] = (), kind: str | None = None) -> list[dict[str, Any]]:
    """The documents by path, removed ones last: their row of the table, and ``chunks``, ``tokens``, ``edits`` in force.

    Args:
        filters: parts of a path or title, in any case; all must occur.
        kind: a document's type, such as ``pdf``.
    """
    where, values = _filtered(filters, kind)
    with open_store(path, readonly=True) as store:
        return store.rows(f"{COUNTED} WHERE {where} ORDER BY documents.removed IS NOT NULL, documents.path", values)


def _filtered(filters: Sequence[str], kind: str | None = None, table: str = "documents") -> tuple[str, list[str]]:
    parts = [f"instr(lower({table}.path || char(10) || {table}.title), lower(?))"] * len(filters)
    parts += [f"{table}.type = ?"] if kind else []
    return " AND ".join(parts) or "1", [*filters, *([kind] if kind else [])]


def show(path: Path, name: str) -> dict[str, Any]:
    """A document with its ``chunk_list`` and ``orphans`` (edits whose chunk is gone), or a chunk.

    A chunk has ``text``, ``original`` and ``overlapping``, the text that its passage repeats.

    Raises:
        DataError: no such document or chunk, or several.
    """
    with open_store(path, readonly=True) as store:
        place = find(store, name)
        if place.chunk is not None:
            return _chunk(store, place)
        page = store.rows(f"{COUNTED} WHERE documents.id = ?", (place.document,))[0]
        cleaned = store.rows("SELECT hash, cleaned FROM documents WHERE id = ?", (place.document,))[0]
        orphans = "SELECT original, text, edited FROM orphans WHERE document = ? ORDER BY id"
        return {
            **page,
            "hash": cleaned["hash"],
            "cleaned": json.loads(cleaned["cleaned"] or "{}"),
            "chunk_list": store.rows(f'{CHUNK} WHERE chunks.document = ? ORDER BY "index"', (place.document,)),
            "orphans": store.rows(orphans, (place.document,)),
        }


def _chunk(store: Store, place: Place) -> dict[str, Any]:
    found = store.rows(f'{CHUNK} WHERE chunks.document = ? AND "index" = ?', place)
    if not found:
        raise DataError(f"no chunk {place.chunk}", where=str(store.path), fix=f"mlxforge kb show {store.path} {place.document}")
    chunk = found[0]
    before = store.rows("SELECT passage FROM passages WHERE id = ?", (chunk["id"],))
    passage = str(before[0]["passage"]) if before else chunk["text"]
    return {**chunk, "overlapping": passage[: len(passage) - len(chunk["text"])]}


def search(path: Path, words: str, *, limit: int = 10, any_word: bool = False, raw: bool = False) -> Found:
    """See :func:`mlxforge.knowledge.search.search`."""
    with open_store(path, readonly=True) as store:
        return find_words(store, words, limit=limit, any_word=any_word, raw=raw)


def marked(snippet: str, begin: str, end: str) -> str:
    """A snippet with other marks around the words found."""
    return snippet.replace(OPEN, begin).replace(CLOSE, end)


def edit(path: Path, name: str, text: str | None, model: str | None = None) -> dict[str, Any]:
    """Puts ``text`` in place of a chunk's; None brings the chunk's own text back. The white space around a chunk stays.

    Args:
        model: whose tokenizer counts; the store's own by default, else ``tiny``.

    Returns:
        The chunk as :func:`show` gives it, and ``changed``.

    Raises:
        DataError: no such chunk, or an empty text.
    """
    with open_store(path) as store:
        place = find(store, name)
        if place.chunk is None:
            fix = f"name one of its chunks: {place.document}:0"
            raise DataError("a whole document is edited chunk by chunk", where=name, fix=fix)
        chunk = _chunk(store, place)
        if text is not None and not text.strip():
            raise DataError("an empty text", where=name, fix=f"take the chunk out: mlxforge kb drop {path} {name}")
        wanted = chunk["original"] if text is None else between(chunk["original"], text)
        if wanted == chunk["text"]:
            return {**chunk, "changed": False}
        tokens = 0
        if wanted != chunk["original"]:
            counter = counter_of(resolve_model(model or store.about("model") or "tiny", TOKENIZER))
            tokens = counter.count(chunk["overlapping"] + wanted)
        _write_edit(store, chunk, wanted, tokens)
        return {**_chunk(store, place), "changed": True}


def between(original: str, text: str) -> str:
    """``text`` with the white space that stands around ``original``: chunks joined must not run into each other."""
    bare = original.strip()
    if not bare:
        return text
    start = original.index(bare)
    return original[:start] + text.strip() + original[start + len(bare) :]


def _write_edit(store: Store, chunk: dict[str, Any], text: str, tokens: int) -> None:
    with store.writing() as connection:
        if text == chunk["original"]:
            connection.execute("DELETE FROM edits WHERE chunk = ?", (chunk["id"],))
            return
        connection.execute(
            "INSERT INTO edits (chunk, text, tokens, edited) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (chunk) DO UPDATE SET text = excluded.text, tokens = excluded.tokens, edited = excluded.edited",
            (chunk["id"], text, tokens, now()),
        )


def drop_plan(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """What :func:`drop` would take out, each document or chunk once.

    Each has ``name``, ``path``, ``chunks``, ``edits`` and ``index``, None of a whole document.

    Raises:
        DataError: one of the names is none, or several.
    """
    with open_store(path, readonly=True) as store:
        places = dict.fromkeys(find(store, name) for name in names)
        plan = []
        for place in places:
            row = store.rows(f"{COUNTED} WHERE documents.id = ?", (place.document,))[0]
            whole = place.chunk is None
            name = str(place.document) if whole else f"{place.document}:{place.chunk}"
            chunks, edits = (row["chunks"], row["edits"]) if whole else (1, int(_chunk(store, place)["edited"]))
            plan.append({"name": name, "path": row["path"], "index": place.chunk, "chunks": chunks, "edits": edits})
        return plan


def drop(path: Path, plan: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Takes documents out for good, with their edits; of a chunk an empty edit is kept, which ``edit`` can revert.

    Returns:
        ``documents`` and ``chunks``: how many of each.
    """
    with open_store(path) as store, store.writing() as connection:
        for one in plan:
            document = int(one["name"].partition(":")[0])
            if one["index"] is None:
                connection.execute("DELETE FROM documents WHERE id = ?", (document,))
                continue
            connection.execute(
                "INSERT INTO edits (chunk, text, tokens, edited) "
                "SELECT id, '', 0, ? FROM chunks WHERE document = ? AND \"index\" = ? "
                "ON CONFLICT (chunk) DO UPDATE SET text = '', tokens = 0, edited = excluded.edited",
                (now(), document, one["index"]),
            )
    documents = sum(one["index"] is None for one in plan)
    return {"documents": documents, "chunks": len(plan) - documents, "dropped": list(plan)}


def kind_of(output: Path | None, kind: str | None) -> str:
    """What is written: as asked, else by the suffix, else chunks."""
    return kind or SUFFIXES.get(output.suffix.lower() if output else "", "chunks")


def exported(path: Path, kind: str, filters: Sequence[str] = (), *, passages: bool = False) -> Iterator[bytes]:
    """What is in force: a JSON line a chunk or document, or the text of the documents with an empty line between two.

    Raises:
        DataError: nothing fits the filters.
    """
    with open_store(path, readonly=True) as store:
        store.connection.execute("BEGIN")
        where, values = _filtered(filters)
        query = f"SELECT id, path, title, type, language FROM documents WHERE removed IS NULL AND {where} ORDER BY path"
        found = store.rows(query, values)
        if not found:
            what = "no document fits the filter" if filters else "the knowledge base holds no document"
            raise DataError(what, where=str(path), fix=f"what there is: mlxforge kb list {path}")
        for number, document in enumerate(found):
            yield from WRITERS[kind](store, document, number, passages)


def _chunk_lines(store: Store, document: dict[str, Any], _: int, passages: bool) -> Iterator[bytes]:
    view = "passages" if passages else "current"
    for row in store.stream(f'SELECT * FROM {view} WHERE document = ? ORDER BY "index"', (document["id"],)):
        line = {
            "text": row["passage"] if passages else row["text"],
            "document": row["path"],
            "chunk": row["index"],
            "title": row["title"],
            "heading": row["heading"],
            "page": row["page"],
            "span": [row["start"], row["end"]],
            "tokens": row["tokens"],
            "edited": bool(row["edited"]),
        }
        yield msgspec.json.encode(line) + b"\n"


def _document_line(store: Store, document: dict[str, Any], _: int, __: bool) -> Iterator[bytes]:
    keys = ("title", "type", "language")
    line = {"text": store.text(document["id"]), "document": document["path"], **{key: document[key] for key in keys}}
    yield msgspec.json.encode(line) + b"\n"


def _document_text(store: Store, document: dict[str, Any], number: int, _: bool) -> Iterator[bytes]:
    text = store.text(document["id"])
    yield (("\n" if number else "") + text + ("" if text.endswith("\n") else "\n")).encode("utf-8", "surrogatepass")


WRITERS = {"chunks": _chunk_lines, "documents": _document_line, "text": _document_text}


def export(
    path: Path, output: Path, kind: str, filters: Sequence[str] = (), *, passages: bool = False, force: bool = False
) -> dict[str, Any]:
    """Writes :func:`exported` to a file that appears whole.

    Returns:
        ``output``, ``kind``, ``rows`` (lines of JSON, or documents) and ``bytes``.

    Raises:
        DataError: the file is there already, or nothing to write.
    """
    if output.exists() and not output.is_file():
        raise DataError("not a regular file", where=str(output), fix="name a file to write")
    if output.exists() and (not force or output.resolve() == path.resolve()):
        fix = "name another file" if output.resolve() == path.resolve() else "--force replaces it"
        raise DataError("is there already", where=str(output), fix=fix)
    rows = size = 0
    parts = exported(path, kind, filters, passages=passages)
    with new_file(output) as file:
        for part in parts:
            rows += 1
            size += file.write(part)
    return {"output": str(output), "kind": kind, "rows": rows, "bytes": size}


def stats(path: Path) -> dict[str, Any]:
    """Totals of what is in force, by type and language, what is removed and edited, and a histogram of tokens a chunk."""
    with open_store(path, readonly=True) as store:
        store.connection.execute("BEGIN")
        documents = store.rows(COUNTED)
        force = [row for row in documents if row["removed"] is None]
        widths = store.rows("SELECT tokens, count(*) AS chunks FROM current GROUP BY tokens ORDER BY tokens")
        lengths = [(row["tokens"], row["chunks"]) for row in widths]
        orphans = store.rows("SELECT count(*) AS number FROM orphans")[0]["number"]
        jobs = store.rows("SELECT kind, count(*) AS jobs FROM jobs GROUP BY kind ORDER BY kind")
        rows = store.rows("SELECT verdict, count(*) AS rows FROM rows GROUP BY verdict ORDER BY verdict")
        model = store.about("model")
    return {
        "documents": len(force),
        "removed": len(documents) - len(force),
        "chunks": sum(row["chunks"] for row in force),
        "tokens": sum(row["tokens"] for row in force),
        "bytes": sum(row["bytes"] for row in force),
        "edits": sum(row["edits"] for row in force),
        "orphans": orphans,
        "model": model,
        "types": _grouped(force, "type"),
        "languages": _grouped(force, "language"),
        "tokens_per_chunk": {**_quantiles(lengths), "histogram": histogram(lengths)},
        "jobs": {row["kind"]: row["jobs"] for row in jobs},
        "rows": {row["verdict"]: row["rows"] for row in rows},
        "file_bytes": sum(file.stat().st_size for file in (path, path.with_name(path.name + "-wal")) if file.exists()),
    }


def _grouped(documents: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Documents, chunks and tokens for each value of a column, the one with most tokens first."""
    groups: dict[str | None, dict[str, Any]] = {}
    for row in documents:
        group = groups.setdefault(row[key], {key: row[key], "documents": 0, "chunks": 0, "tokens": 0, "bytes": 0})
        group["documents"] += 1
        for name in ("chunks", "tokens", "bytes"):
            group[name] += row[name]
    return sorted(groups.values(), key=lambda group: -group["tokens"])


def _quantiles(lengths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Mean, median, 95th percentile and longest of (tokens, chunks) in order."""
    total = sum(chunks for _, chunks in lengths)
    if not total:
        return {"mean": 0.0, "median": 0, "p95": 0, "max": 0}
    mean = sum(tokens * chunks for tokens, chunks in lengths) / total
    return {
        "mean": round(mean, 1),
        "median": _at(lengths, 0.5 * total),
        "p95": _at(lengths, 0.95 * total),
        "max": lengths[-1][0],
    }


def _at(lengths: Sequence[tuple[int, int]], rank: float) -> int:
    met = 0
    for tokens, chunks in lengths:
        met += chunks
        if met >= rank:
            return tokens
    return lengths[-1][0]


def histogram(lengths: Sequence[tuple[int, int]]) -> list[dict[str, int]]:
    """At most 16 bins of one round width; each counts the chunks of more tokens than the bin before and up to ``upto``."""
    if not lengths:
        return []
    longest = max(tokens for tokens, _ in lengths)
    width = next(base * 10**power for power in range(19) for base in BIN_WIDTHS if base * 10**power * BINS >= longest)
    bins = [0] * max(1, -(-longest // width))
    for tokens, chunks in lengths:
        bins[max(0, -(-tokens // width) - 1)] += chunks
    return [{"upto": (number + 1) * width, "chunks": chunks} for number, chunks in enumerate(bins)]
