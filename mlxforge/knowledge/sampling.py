"""Which chunks are asked about, in which style, for which part of the data: even over documents, styles and chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxforge.core.errors import DataError
from mlxforge.core.files import bytes_hash
from mlxforge.data.splits import Seen, group_key, moves, part_of
from mlxforge.knowledge.gates import Passage
from mlxforge.knowledge.jobs import Task
from mlxforge.knowledge.store import Store

SHORTEST = 80  # characters: less is a heading or a page number


@dataclass(frozen=True)
class Sampled:
    """The chunks to ask about, in the order in which they are: ``chunks`` are (id, split); ``digest`` changes with their texts.

    ``documents`` are numbers by split.
    """

    chunks: Sequence[tuple[int, str]]
    digest: str
    documents: Mapping[str, int]
    short: int


def sample(store: Store, seed: int, valid: float, test: float) -> Sampled:
    """All chunks in force of a useful length: one of every document, then a second of each, spread over the document.

    Documents of equal content go into one split.

    Raises:
        DataError: there is none.
    """
    chunks: dict[str, list[int]] = {}
    hashes: dict[str, str] = {}
    digest, short = [str(seed), str(valid), str(test)], 0
    for row in store.stream(
        "SELECT current.id, current.path, documents.hash, current.text FROM current JOIN documents "
        'ON documents.id = current.document ORDER BY current.path, current."index"'
    ):
        if len(row["text"].strip()) < SHORTEST:
            short += 1
            continue
        chunks.setdefault(row["path"], []).append(row["id"])
        hashes[row["path"]] = row["hash"]
        digest.append(bytes_hash(row["path"], row["text"]))
    if not chunks:
        what = f"{short} chunks of less than {SHORTEST} characters, no other" if short else "no chunks"
        raise DataError(what, where=str(store.path), fix=f"add documents: mlxforge ingest PATH --into {store.path}")
    splits = _splits(hashes, valid, test)
    order = sorted(chunks, key=lambda path: bytes_hash(str(seed), path))
    spread = {path: [numbers[place] for place in _spread(len(numbers))] for path, numbers in chunks.items()}
    rounds = range(max(map(len, chunks.values())))
    picked = [(spread[path][turn], splits[path]) for turn in rounds for path in order if turn < len(spread[path])]
    return Sampled(picked, bytes_hash(*digest)[:16], Counter(splits.values()), short)


def _spread(count: int) -> list[int]:
    """The places 0 … count - 1 so that any first few lie evenly: ordered by their bits read backwards."""
    width = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda place: int(f"{place:0{width}b}"[::-1], 2))


def _splits(hashes: Mapping[str, str], valid: float, test: float) -> dict[str, str]:
    seen, keys = Seen(), {path: group_key(content) for path, content in hashes.items()}
    for key in set(keys.values()):
        seen.take(part_of(key, valid, test), key)
    moved = moves(seen, valid, test)
    return {path: moved.get(key) or part_of(key, valid, test) for path, key in keys.items()}


def plan(sampled: Sampled, styles: Sequence[str], per_chunk: int, limit: int | None) -> Iterator[Task]:
    """A task for each chunk and style, which asks for one row or more; styles take turns. At most ``limit`` rows in all."""
    number = asked = 0
    for chunk, split in sampled.chunks:
        wanted = per_chunk if limit is None else min(per_chunk, limit - asked)
        if wanted < 1:
            return
        turns = Counter(styles[(asked + turn) % len(styles)] for turn in range(wanted))
        for style, count in turns.items():
            yield Task(number, chunk, style, split, {"count": count})
            number += 1
        asked += per_chunk


def passage(store: Store, chunk: int | None) -> Passage:
    """A chunk as a prompt shows it."""
    (row,) = store.rows("SELECT * FROM passages WHERE id = ?", (chunk,))
    return passage_of(row)


def passage_of(row: Mapping[str, Any]) -> Passage:
    """The same of a row of the view ``passages``."""
    before = len(row["passage"]) - len(row["text"])
    start = None if row["edited"] else row["start"] - before
    heading = row["heading"] or row["title"]
    return Passage(row["path"], row["title"], row["index"], heading, row["passage"], start, (row["start"], row["end"]))
