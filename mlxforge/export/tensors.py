"""One tensor of a GGUF file: what it is made of, block by block, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mlxforge.export.source import Source

BLOCK = 2 * 2**20  # values of a block: 8 MB of float32, whose memory is used again; much larger ones are slower
Order = Callable[[int, tuple[int, ...]], np.ndarray]


def interleaved(rows: int, options: tuple[int, ...]) -> np.ndarray:
    """Order of the rows of queries or keys where llama.cpp rotates neighbours, not the halves of a head; options: (heads,)."""
    return np.arange(rows).reshape(options[0], 2, -1).swapaxes(1, 2).reshape(-1)


def tiled(rows: int, options: tuple[int, ...]) -> np.ndarray:
    """Order of linear attention's value heads: one of every key head's group after the other, not group after group.

    options: (key heads, value heads). What lies before the value heads stays: a multiple of theirs is taken from the end.
    Rows of a fused q, k, v give (key heads, value heads, width of a value head).
    """
    keys, values, *width = options
    size = values * width[0] if width else rows
    head = np.arange(rows - size)
    return np.concatenate([head, len(head) + np.arange(size).reshape(keys, values // keys, -1).swapaxes(0, 1).reshape(-1)])


def same(values: np.ndarray) -> np.ndarray:
    """The values themselves."""
    return values


@dataclass(frozen=True)
class Op:
    """What is done to stored values, and how it is undone.

    Attributes:
        value, back: of each value, and its inverse.
        rows, columns: row (column) i of the GGUF tensor is stored as row (column) ``order[i]``.
        half: the tensor is this half (0 or 1) of the stored tensor's second axis.
    """

    value: Callable[[np.ndarray], np.ndarray] = same
    back: Callable[[np.ndarray], np.ndarray] = same
    rows: Order | None = None
    columns: Order | None = None
    half: int | None = None


OPS: dict[str, Op] = {
    "copy": Op(),  # several sources are stacked
    "plus_one": Op(value=lambda a: a + np.float32(1), back=lambda a: a - np.float32(1)),
    "interleaved": Op(rows=interleaved),
    "tiled_rows": Op(rows=tiled),
    "tiled_columns": Op(columns=tiled),
    "decay": Op(rows=tiled, value=lambda a: -np.exp(a), back=lambda a: np.log(-a)),
    "first_half": Op(half=0),
    "second_half": Op(half=1),
}


@dataclass(frozen=True)
class Placed:
    """A tensor of the GGUF file.

    Attributes:
        name: its GGUF name, such as ``blk.0.attn_q.weight``.
        shape: in numpy's order; GGUF writes it reversed.
        sources: the stored tensors it is made of; empty for ``values``.
        stored: their shapes.
        op: a key of ``OPS``; options are its numbers.
        keep32: llama.cpp wants it in float32 (1-D tensors, norms, router gates, convolutions).
        values: of a tensor that is computed from config.json.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    op: str = "copy"
    keep32: bool = False
    stored: tuple[tuple[int, ...], ...] = ()
    options: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def blocks(self, source: Source, *, stored: bool = False) -> Iterator[np.ndarray]:
        """The values in float32, in order: blocks (rows, last axis) of about 8 MB, 1-D for a 1-D tensor.

        With ``stored`` in the type that they are stored in (see ``Source.block``), unless their values change.

        Reads no more at once than a block, or one expert of a tensor that is stored with its experts stacked.
        """
        if not self.sources:
            yield np.array(self.values, np.float32)
        op = OPS[self.op]
        read = source.block if stored and op.value is same else source.rows
        for name, shape in zip(self.sources, self.stored, strict=True):
            order = op.rows(shape[0], self.options) if op.rows else None
            step = max(1, BLOCK // max(1, int(np.prod(shape[1:]))))
            for start in range(0, shape[0], step):
                stop = min(start + step, shape[0])
                block = read(name, start, stop) if order is None else gathered(read, name, order[start:stop])
                yield from self._pieces(op, block)

    def _pieces(self, op: Op, block: np.ndarray) -> Iterator[np.ndarray]:
        if op.half is not None:
            block = np.split(block, 2, axis=1)[op.half]
        block = block.reshape(self._flat)
        if op.columns:
            block = np.take(block, op.columns(self.shape[-1], self.options), axis=1)
        step = max(1, BLOCK // max(1, int(np.prod(block.shape[1:]))))
        for start in range(0, len(block), step):
            yield np.ascontiguousarray(op.value(block[start : start + step]))

    @property
    def _flat(self) -> tuple[int, ...]:
        return (-1, self.shape[-1]) if len(self.shape) > 1 else (-1,)

    def restore(self, array: np.ndarray, into: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """The stored tensors of the file's values, by name: the inverse of ``blocks``, up to float32's rounding.

        ``into`` is filled and returned; give one for a whole layout, since some stored tensors become two in the file.
        """
        into = {} if into is None else into
        op, flat = OPS[self.op], array.astype(np.float32, copy=False).reshape(self._flat)
        flat = op.back(flat)
        if op.columns:
            flat = np.take(flat, np.argsort(op.columns(self.shape[-1], self.options)), axis=1)
        parts = np.split(flat, len(self.sources)) if self.sources else []
        for name, stored, part in zip(self.sources, self.stored, parts, strict=True):
            if op.half is not None:
                whole = into.setdefault(name, np.zeros(stored, np.float32))
                np.split(whole, 2, axis=1)[op.half][:] = part.reshape(stored[0], stored[1] // 2, *stored[2:])
                continue
            whole = part.reshape(stored)
            into[name] = whole[np.argsort(op.rows(stored[0], self.options))] if op.rows else whole
        return into


def gathered(read: Callable[[str, int, int], np.ndarray], name: str, rows: np.ndarray) -> np.ndarray:
    """These rows of a stored tensor, in this order: one read where they lie close, else one for every run of neighbours."""
    low, high = int(rows.min()), int(rows.max()) + 1
    if high - low <= 2 * len(rows):
        return read(name, low, high)[rows - low]
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return np.concatenate([read(name, int(run[0]), int(run[-1]) + 1) for run in runs])
