"""Documents as tokens on disk: written once for the same content, tokenizer and settings, then mapped into memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mlxforge.core.errors import DataError
from mlxforge.core.events import Emit, Noted, Progress, ignore
from mlxforge.core.files import bytes_hash, new_directory, sweep
from mlxforge.data.boundaries import Marks, token_marks
from mlxforge.data.pieces import PIECE, ahead, anchor_ids, encode_pieces, pieces
from mlxforge.data.readers import Reading
from mlxforge.data.sources import Document, Input, Source, content_key, documents, locate, text_key
from mlxforge.data.store import read_columns, read_flat, write_columns

FORMAT = 1  # raise it when the files or the way to cut and encode change
BATCH = 1 << 21  # characters encoded at a time
OVERHEAD = 64  # characters that a short piece counts besides its own, for the objects around it
DIGEST = 16  # bytes
DAY = 86_400.0  # seconds after which an unfinished cache is nobody's work any more

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Encoder:
    """A tokenizer and the ids around a document: ``start_id`` is BOS or, where there is none, EOS; ``end_id`` is EOS."""

    tokenizer: Any  # tokenizers.Tokenizer
    start_id: int
    end_id: int

    @cached_property
    def plain(self) -> Any:
        """The tokenizer without the truncation and padding that its file may ask for: nothing of a text is cut off."""
        if self.tokenizer.truncation is None and self.tokenizer.padding is None:
            return self.tokenizer
        copy = type(self.tokenizer).from_str(self.tokenizer.to_str())
        copy.no_truncation()
        copy.no_padding()
        return copy

    @cached_property
    def vocabulary(self) -> int:
        """One more than the greatest token id."""
        ids = self.tokenizer.get_vocab(with_added_tokens=True).values()
        return max(self.start_id, self.end_id, *ids) + 1

    @cached_property
    def key(self) -> str:
        """A hash of all that decides the tokens of a text."""
        return bytes_hash(self.plain.to_str(), f"{FORMAT} {PIECE} {self.start_id} {self.end_id}")


@dataclass(frozen=True, eq=False)
class TokenSet:
    """N documents as token sequences ``[start] + ids + [end]``; every token but the first is a target.

    The columns are (N,); ``marks`` is (vocabulary,). A subset shares the mapped ``tokens``.
    """

    tokens: npt.NDArray[Any]
    starts: Ints
    stops: Ints
    bytes: Ints  # UTF-8 bytes of each document's text
    digests: npt.NDArray[np.uint8]  # (N, 16) hash of each document's text
    source: Ints
    source_weights: tuple[float, ...]
    marks: Marks
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """The sequence of one document."""
        sequence: npt.NDArray[Any] = self.tokens[self.starts[index] : self.stops[index]]
        return sequence

    @property
    def lengths(self) -> Ints:
        """(N,) tokens of each sequence, start and end included."""
        return self.stops - self.starts

    @property
    def trained(self) -> int:
        """Targets of all documents."""
        return int(self.lengths.sum()) - len(self)

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """(N,) weight of each document's source."""
        return np.asarray(self.source_weights, np.float64)[self.source]

    @property
    def keys(self) -> npt.NDArray[np.uint64]:
        """(N,) the first 8 bytes of each digest, as a number."""
        return np.ascontiguousarray(self.digests[:, :8]).view(">u8").reshape(-1).astype(np.uint64)

    @property
    def hash(self) -> str:
        """A hash of the documents in their order."""
        return bytes_hash(self.digests.tobytes())

    def subset(self, index: npt.NDArray[Any]) -> TokenSet:
        """The documents at the given positions, or where a mask (N,) is True."""
        columns = ("starts", "stops", "bytes", "digests", "source")
        return replace(self, **{name: getattr(self, name)[index] for name in columns})

    def without(self, other: TokenSet) -> TokenSet:
        """The documents whose text is not one of ``other``'s: keeps validation text out of training."""
        known = {digest.tobytes() for digest in other.digests}
        return self.subset(np.array([digest.tobytes() not in known for digest in self.digests], np.bool_))


class Keyed(Protocol):
    """Rows that are split by what they came from: ``keys`` (N,) are equal for rows of one document or conversation."""

    @property
    def keys(self) -> npt.NDArray[np.uint64]: ...
    def subset(self: K, index: npt.NDArray[Any], /) -> K: ...


K = TypeVar("K", bound=Keyed)


def split_by_hash(tokens: K, share: float) -> tuple[K, K]:
    """(training, validation) documents. A document's own text decides, whatever its place or the other documents.

    Where ``share`` > 0 and there are two documents or more, neither part is empty; a lone document is for training.
    """
    keys = tokens.keys
    held_out = keys < np.uint64(min(int(share * 2**64), 2**64 - 1))
    if share > 0 and len(keys):
        held_out[keys == keys.min()] = True
        held_out[keys == keys.max()] = False
    return tokens.subset(~held_out), tokens.subset(held_out)


def prepare(
    sources: Iterable[Source],
    encoder: Encoder,
    *,
    cache: Path,
    mapping: Mapping[str, str] | None = None,
    emit: Emit = ignore,
) -> TokenSet:
    """The sources' documents as tokens, from the cache where it holds them.

    Exact duplicates and documents of white space alone are left out and counted (``Noted``, and ``counts`` of the result).

    Args:
        cache: folder of the token caches; each is a folder in it.
        mapping: ``{"text": "content"}`` reads the key ``content`` of a row as its text.

    Raises:
        DataError: the first 20 bad rows or files, or no text at all.
    """
    inputs = locate(sources, emit)
    key = text_key(mapping or {})
    keys = [given.source.key or key for given in inputs]
    folder = cache / bytes_hash(content_key(inputs), encoder.key, *(keys if set(keys) != {key} else [key]))[:32]
    weights = tuple(given.source.weight for given in inputs)
    found = load(folder, weights)
    if found is None:
        sweep(cache, older_than=DAY)
        with new_directory(folder) as temporary:
            _write(temporary, inputs, mapping or {}, encoder, emit)
        found = load(folder, weights)
        assert found is not None
    for name, message in MESSAGES.items():
        if found.counts[name]:
            emit(Noted(message=f"{message}: {found.counts[name]}"))
    return found


MESSAGES = {"duplicates": "exact duplicate documents left out", "blank": "documents without text left out"}
COLUMNS = {
    "stops": np.int64,
    "lengths": np.int64,
    "bytes": np.int64,
    "source": np.int64,
    "digests": np.uint8,
    "marks": np.uint8,
}


def load(folder: Path, weights: Sequence[float]) -> TokenSet | None:
    """The token set in ``folder``; None where there is none or a file of it is missing or not as long as it was."""
    found = read_columns(folder, COLUMNS)
    if found is None:
        return None
    column, meta = found
    tokens = read_flat(folder / "tokens.bin", meta["dtype"])
    stops, digests = column["stops"], column["digests"].reshape(-1, DIGEST)
    parts = (column["bytes"], digests, column["source"], tuple(weights), column["marks"])
    return TokenSet(tokens, stops - column["lengths"], stops, *parts, meta["counts"])


def _write(folder: Path, inputs: Sequence[Input], mapping: Mapping[str, str], encoder: Encoder, emit: Emit) -> None:
    """Fills a cache folder: one pass over the documents, memory bounded."""
    reading = Reading(sum(path.stat().st_size for given in inputs for path in given.files))
    counts = {"documents": 0, "duplicates": 0, "blank": 0}
    tokenizer, anchor = encoder.plain, anchor_ids(encoder.plain)

    def encode(batch: Sequence[Piece]) -> list[list[int]]:
        return encode_pieces(tokenizer, [p.text for p in batch], [p.first for p in batch], anchor)

    emit(Progress(task="reading", done=0, total=reading.total, unit="B"))
    with open(folder / "tokens.bin", "wb") as file:
        writer = _Writer(file, encoder)
        todo = _pieces(documents(inputs, mapping, reading), counts)
        for batch, encoded in ahead(encode, _batches(todo)):
            for piece, ids in zip(batch, encoded, strict=True):
                writer.add(piece, ids)
            if reading.bytes < reading.total or not reading.total:
                emit(Progress(task="reading", done=reading.bytes, total=reading.total, unit="B"))
    if not writer.lengths:
        names = ", ".join(given.source.path for given in inputs)
        raise DataError(
            "no text is left after filtering", where=names, fix=f"{counts['blank']} documents hold white space only"
        )
    emit(Progress(task="reading", done=max(reading.total, 1), total=max(reading.total, 1), unit="B"))
    writer.columns["marks"] = token_marks(encoder.tokenizer, encoder.vocabulary)
    write_columns(folder, writer.columns, COLUMNS, {"dtype": writer.dtype.name, "counts": counts})


@dataclass
class Piece:
    """A part of a document on its way to the tokenizer. What is known of the whole comes with its last piece."""

    text: str
    source: int
    first: bool
    last: bool = False
    kept: bool = True
    digest: bytes = b""
    bytes: int = 0


def _pieces(found: Iterable[Document], counts: dict[str, int]) -> Iterator[Piece]:
    """The pieces of all documents. Short ones that are not kept never appear; of long ones it is known at the end only."""
    seen: set[int] = set()
    for document in found:
        digest, size, blank, waiting = hashlib.blake2b(digest_size=DIGEST), 0, True, None
        for text in pieces(document.parts, PIECE):
            if waiting is not None:
                yield waiting
            data = text.encode()
            digest.update(data)
            size, blank = size + len(data), blank and text.isspace()
            waiting = Piece(text, document.source, first=waiting is None)
        number = int.from_bytes(digest.digest(), "big")
        verdict = "blank" if blank else "duplicates" if number in seen else "documents"
        counts[verdict] += 1
        seen.add(number)
        kept = verdict == "documents"
        if waiting is not None and (kept or not waiting.first):
            waiting.last, waiting.kept, waiting.digest, waiting.bytes = True, kept, digest.digest(), size
            yield waiting


def _batches(todo: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces together, about BATCH characters."""
    batch: list[Piece] = []
    size = 0
    for piece in todo:
        batch.append(piece)
        size += len(piece.text) + OVERHEAD
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """Appends documents to ``tokens.bin``; one that turns out not to be kept is taken back."""

    def __init__(self, file: IO[bytes], encoder: Encoder) -> None:
        self.file, self.start_id, self.end_id = file, encoder.start_id, encoder.end_id
        self.dtype = np.dtype(np.uint16 if encoder.vocabulary <= 1 << 16 else np.uint32)
        self.begin = self.end = 0  # of the document at hand, in tokens
        self.stops, self.lengths, self.sizes, self.source = (array("q") for _ in range(4))
        self.digests = bytearray()
        self.columns: dict[str, Any] = {
            "stops": self.stops,
            "lengths": self.lengths,
            "bytes": self.sizes,
            "source": self.source,
            "digests": self.digests,
        }

    def add(self, piece: Piece, ids: list[int]) -> None:
        """Writes the tokens of the next piece."""
        around = ([self.start_id] if piece.first else []), ([self.end_id] if piece.last else [])
        tokens = np.array([*around[0], *ids, *around[1]], self.dtype)
        self.file.write(tokens.tobytes())
        self.end += len(tokens)
        if piece.last and piece.kept:
            self.stops.append(self.end)
            self.lengths.append(self.end - self.begin)
            self.sizes.append(piece.bytes)
            self.source.append(piece.source)
            self.digests += piece.digest
        elif piece.last:
            self.end = self.begin
            self.file.seek(self.begin * self.dtype.itemsize)
            self.file.truncate()
        if piece.last:
            self.begin = self.end
