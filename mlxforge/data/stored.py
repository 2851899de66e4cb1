"""Rows of messages as tokens and flags on disk: encoded once for the same content, template and settings, then mapped.

What conversations, pairs and judged answers have in common: the cache folder, its columns, what is counted and told.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from mlxforge.core.errors import DataError
from mlxforge.core.events import Emit, Noted, Progress, Warned, ignore
from mlxforge.core.files import bytes_hash, new_directory, sweep
from mlxforge.core.rows import Chat
from mlxforge.data.formats import BadRow, read_rows
from mlxforge.data.readers import Reading
from mlxforge.data.selftest import shape
from mlxforge.data.sources import Source, content_key, locate
from mlxforge.data.store import read_columns, read_flat, write_columns
from mlxforge.data.tokens import DAY, DIGEST

EVERY = 1000  # rows between two reports
FIRST, SHAPES = 4, 64  # conversations kept for the self-test: the first ones, and one of each of so many shapes
EXAMPLES = "examples.json"
MASKED, TRAINED = 0, 1
SKIPPED, THOUGHTS, DUPLICATES = "skipped", "thoughts", "duplicates"

# Of every kind of rows; a column of uint8 holds DIGEST bytes a row.
COLUMNS: dict[str, Any] = {
    "stops": np.int64,
    "lengths": np.int64,
    "trained": np.int64,
    "bytes": np.int64,
    "source": np.int64,
    "digests": np.uint8,
}
CODES = {np.int64: "q", np.bool_: "b"}

Ints = npt.NDArray[np.int64]
S = TypeVar("S", bound="Stored")


@dataclass(frozen=True)
class RowOptions:
    """How rows are read and kept.

    Args:
        cache: folder of the token caches; each is a folder in it.
        vocabulary: one more than the greatest token id.
        format, mapping, skip_bad: see :func:`mlxforge.data.formats.read_rows`.
    """

    cache: Path
    vocabulary: int
    format: str | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    skip_bad: bool = False


class Counting(Protocol):
    """An encoder: what decides its rows, and what it counts."""

    counts: Counter[str]

    @property
    def key(self) -> str: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Stored:
    """N rows. The columns are (N,); a subset shares the mapped files.

    ``digests`` (N, 16) hashes the content of a row; ``examples`` are conversations of every shape that the data has.
    """

    tokens: npt.NDArray[Any]
    flags: npt.NDArray[np.uint8]  # as long as tokens: TRAINED where a token is a target
    starts: Ints
    stops: Ints
    trained: Ints
    bytes: Ints
    digests: npt.NDArray[np.uint8]
    source: Ints
    source_weights: tuple[float, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[Chat, ...] = ()

    by_row: ClassVar[tuple[str, ...]] = ("starts", "stops", "trained", "bytes", "digests", "source")

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """(N,) weight of each row's source."""
        return np.asarray(self.source_weights, np.float64)[self.source]

    @property
    def keys(self) -> npt.NDArray[np.uint64]:
        """(N,) a number that is the same for rows that must not be parted between training and validation."""
        return numbers(self.digests)

    @property
    def hash(self) -> str:
        """A hash of the rows in their order."""
        return bytes_hash(self.digests.tobytes())

    def subset(self: S, index: npt.NDArray[Any]) -> S:
        """The rows at the given positions, or where a mask (N,) is True."""
        return replace(self, **{name: getattr(self, name)[index] for name in self.by_row})

    def without(self: S, other: S) -> S:
        """The rows whose key ``other`` does not have."""
        return self.subset(~np.isin(self.keys, other.keys))


def numbers(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """(N,) the first 8 bytes of each digest, as a number."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def digest(value: Any) -> bytes:
    """A hash of messages or rows."""
    return hashlib.blake2b(msgspec.json.encode(value), digest_size=DIGEST).digest()


class Writer:
    """Appends rows to the token and flag files, and to the columns."""

    def __init__(self, tokens: IO[bytes], flags: IO[bytes], dtype: np.dtype[Any], columns: Mapping[str, Any]) -> None:
        self.tokens, self.flags, self.dtype = tokens, flags, dtype
        self.columns = {name: array(CODES[kind]) if kind in CODES else bytearray() for name, kind in columns.items()}
        self.end = 0
        self.seen: set[bytes] = set()
        self.counts: Counter[str] = Counter()
        self.shapes: set[tuple[Any, ...]] = set()
        self.examples: list[Chat] = []

    def digest(self, row: Any) -> bytes:
        """The hash of a row; one that was there before is counted."""
        found = digest(row)
        self.counts[DUPLICATES] += found in self.seen
        self.seen.add(found)
        return found

    def append(self, ids: npt.ArrayLike, mask: npt.ArrayLike, **values: Any) -> None:
        """One row: its N ids, its mask (N,), and its value in each column but ``stops`` and ``lengths``."""
        tokens = np.asarray(ids, self.dtype)
        self.tokens.write(tokens.tobytes())
        self.flags.write(np.asarray(mask, np.uint8).tobytes())
        self.end += len(tokens)
        for name, value in {"stops": self.end, "lengths": len(tokens), **values}.items():
            column = self.columns[name]
            if isinstance(column, bytearray):
                column += value
            else:
                column.append(value)

    def keep(self, chat: Chat) -> None:
        """Takes a conversation as an example where it is one of the first or of a new shape."""
        kind = shape(chat)
        if len(self.examples) < FIRST or (kind not in self.shapes and len(self.shapes) < SHAPES):
            self.examples.append(chat)
        self.shapes.add(kind)


@dataclass(frozen=True)
class Making:
    """How one kind of rows is made and told.

    Args:
        kind: a key of ``mlxforge.core.rows.KINDS``.
        noun: what a row is in words.
        version: raise it when the files change.
        messages: what is counted -> how it is told; "" for what needs no word. What is not in it is told in its own words.
        encode: a row as whatever ``add`` takes; raises BadRow.
        add: writes a row, with what was encoded and the number of its source.
        columns: by name, those of COLUMNS included.
    """

    kind: str
    noun: str
    version: int
    messages: Mapping[str, str]
    encode: Callable[[Any], Any]
    add: Callable[[Writer, Any, Any, int], None]
    columns: Mapping[str, Any] = field(default_factory=lambda: COLUMNS)


def stored(
    making: Making,
    sources: Iterable[Source],
    encoder: Counting,
    options: RowOptions,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """The fields of :class:`Stored`, and every further column, of the sources' rows: from the cache where it holds them.

    Raises:
        DataError: the first 20 bad rows, or no row at all.
    """
    inputs = locate(sources, emit)
    read = msgspec.json.encode([making.version, options.format, sorted(options.mapping.items()), options.skip_bad])
    folder = options.cache / bytes_hash(content_key(inputs), encoder.key, read)[:32]
    weights = tuple(given.source.weight for given in inputs)
    found = load(folder, making.columns, weights)
    if found is None:
        sweep(options.cache, older_than=DAY)
        reading = Reading(sum(path.stat().st_size for given in inputs for path in given.files), skip_bad=options.skip_bad)
        how: dict[str, Any] = {"format": options.format, "mapping": options.mapping, "skip_bad": options.skip_bad}
        rows = read_rows(inputs, making.kind, reading=reading, **how)
        with new_directory(folder) as temporary:
            with open(temporary / "tokens.bin", "wb") as tokens, open(temporary / "flags.bin", "wb") as flags:
                dtype = np.dtype(np.uint16 if options.vocabulary <= 1 << 16 else np.uint32)
                writer = Writer(tokens, flags, dtype, making.columns)
                _encode(rows, making, encoder, writer, reading, emit)
            _finish(temporary, making, writer, reading, [given.source.path for given in inputs])
        found = load(folder, making.columns, weights)
        assert found is not None
    for name, count in found["counts"].items():
        # Kept with the tokens, so that a cached set tells the same story.
        if message := making.messages.get(name, name):
            emit((Warned if name == SKIPPED else Noted)(message=f"{message}: {count:,}"))
    return found


def load(folder: Path, columns: Mapping[str, Any], weights: Sequence[float]) -> dict[str, Any] | None:
    """What ``folder`` holds, see :func:`stored`; None where there is none or a file is missing or not as long as it was."""
    read = read_columns(folder, columns)
    if read is None:
        return None
    column, meta = read
    shaped = {name: values.reshape(-1, DIGEST) if columns[name] is np.uint8 else values for name, values in column.items()}
    lengths = shaped.pop("lengths")
    return {
        **shaped,
        "tokens": read_flat(folder / "tokens.bin", meta["dtype"]),
        "flags": read_flat(folder / "flags.bin", "uint8"),
        "starts": shaped["stops"] - lengths,
        "source_weights": tuple(weights),
        "counts": meta["counts"],
        "examples": msgspec.json.decode((folder / EXAMPLES).read_bytes(), type=tuple[Chat, ...]),
    }


def _encode(rows: Iterable[Any], making: Making, encoder: Counting, writer: Writer, reading: Reading, emit: Emit) -> None:
    before, refused = Counter(encoder.counts), Reading(skip_bad=reading.skip_bad)
    for number, item in enumerate(rows):
        if number % EVERY == 0:
            emit(Progress(task="encoding", done=reading.bytes, total=reading.total, unit="B"))
        try:
            encoded = making.encode(item.row)
        except BadRow as bad:
            refused.problem(bad.reason, item.origin, bad.fix)
            continue
        if not refused.bad:
            making.add(writer, item.row, encoded, item.source)
    reading.check()
    # Told apart from unreadable rows, after the first of which no more rows come: all that a template refuses are told.
    refused.check()
    reading.skipped += refused.skipped
    emit(Progress(task="encoding", done=max(reading.total, 1), total=max(reading.total, 1), unit="B"))
    writer.counts.update(encoder.counts - before)


def _finish(folder: Path, making: Making, writer: Writer, reading: Reading, names: Sequence[str]) -> None:
    if not writer.end:
        what = "; ".join(reading.notes()) or "they hold no rows"
        raise DataError(f"no {making.noun} is left to train on", where=", ".join(names), fix=what)
    (folder / EXAMPLES).write_bytes(msgspec.json.encode(writer.examples))
    counts = {**writer.counts, SKIPPED: reading.skipped, **reading.left}
    meta = {"dtype": writer.dtype.name, "counts": {name: count for name, count in counts.items() if count}}
    write_columns(folder, writer.columns, making.columns, meta)
