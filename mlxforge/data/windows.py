"""Long documents as windows: every target is trained exactly once, and cuts fall between paragraphs where they can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxforge.data.batch import Row
from mlxforge.data.boundaries import Marks, strengths
from mlxforge.data.tokens import TokenSet

BLOCK = 1 << 20  # tokens whose boundaries are looked at together: bounds the memory for one giant document

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Windows:
    """R rows over a token set. Row i covers tokens ``start[i]`` to ``stop[i]`` of the sequence of document ``document[i]``.

    Its inputs are all of them but the last, its targets all but the first; the next window of a document starts with the
    last token of the one before. ``lengths`` (R,) counts inputs, which is also the number of trained tokens.
    """

    tokens: TokenSet
    document: Ints  # (R,)
    start: Ints  # (R,)
    stop: Ints  # (R,)

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, index: int) -> Row:
        sequence = self.tokens[int(self.document[index])]
        return Row(sequence[self.start[index] : self.stop[index]])

    @property
    def lengths(self) -> Ints:
        return self.stop - self.start - 1

    @property
    def trained(self) -> Ints:
        return self.lengths

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """(R,) how often an epoch reads each row."""
        weights: npt.NDArray[np.float64] = self.tokens.weights[self.document]
        return weights

    @property
    def bytes(self) -> Ints:
        """UTF-8 bytes of each document's text."""
        return self.tokens.bytes

    @property
    def hash(self) -> str:
        """A hash of the documents in their order."""
        return self.tokens.hash


def windows(tokens: TokenSet, max_length: int) -> Windows:
    """Cuts every document into windows of at most ``max_length`` inputs.

    A window ends after the strongest boundary in its last half (paragraph, newline, sentence), the latest of equals.
    """
    lengths = tokens.lengths
    document = np.arange(len(tokens), dtype=np.int64)
    long = np.flatnonzero(lengths - 1 > max_length)
    found: list[tuple[Ints, ...]] = [(document, np.zeros_like(document), lengths)]
    if len(long):
        found = [tuple(np.delete(column, long) for column in found[0])]
        for index in long:
            edges = np.fromiter(cuts(tokens[int(index)], max_length, tokens.marks), np.int64)
            start, stop = np.r_[0, edges - 1], np.r_[edges, lengths[index]]
            found.append((np.full_like(start, index), start, stop))
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    return Windows(tokens, *(column[order] for column in columns))


def cuts(sequence: npt.NDArray[Any], max_length: int, marks: Marks) -> Iterator[int]:
    """The ``stop`` of every window of a sequence but the last."""
    start, size, least = 0, len(sequence), (max_length + 1) // 2
    while size - start - 1 > max_length:
        # One token more than is looked at: whether a sentence ends depends on what follows.
        block = strengths(sequence[start : start + max(BLOCK, max_length) + 2], marks)[::-1]
        base, last = start, start + len(block)
        while size - start - 1 > max_length and start + max_length + 1 < last:
            # The block is reversed, so that argmax finds the latest of equal boundaries.
            high, low = start + max_length + 1 - base, start + least + 1 - base
            stop = base + high - int(block[len(block) - high : len(block) - low + 1].argmax())
            yield stop
            start = stop - 1
