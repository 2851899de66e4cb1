"""Texts on their way through a model: documents in windows of tokens, and what each of their passages comes to.

A passage is a thousand characters or so of a document, cut where lines or words end. It is what confidence intervals are drawn
over: the same for every model, whatever its tokens, and also where a set is one long document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlxforge.data.boundaries import Marks
from mlxforge.data.pieces import ANCHOR, PIECE, anchor_ids, pieces
from mlxforge.data.tokens import Encoder
from mlxforge.data.windows import cuts
from mlxforge.evals.graded import Likelihood

PASSAGE = 1000  # characters


def passages(text: str) -> list[str]:
    """The passages of a document, which together are the whole text."""
    return list(pieces((text,), PASSAGE))


@dataclass
class Sums:
    """A document under way: the passage of each target, minus log-probabilities (nats) so far, windows that are still out."""

    owner: npt.NDArray[np.int64]  # (targets,)
    nats: npt.NDArray[np.float64]  # (passages,)
    out: int = 0


class Spelled(NamedTuple):
    """A document as a model reads it: ``sequence`` (N,) of token ids, its start and its end among them, where in the text the
    ids between them begin, (N - 2,), and how long each passage is, in the same measure (characters or bytes)."""

    sequence: npt.NDArray[np.int64]
    starts: Sequence[int]
    sizes: Sequence[int]


class Passages:
    """Documents as windows that are scored, and the figures of their passages.

    Documents and windows are those of training: :func:`mlxforge.data.tokens.prepare` and :func:`mlxforge.data.windows.windows`.

    Attributes:
        windows: token ids; all but the first of each are targets, and every token of every document is one exactly once.
    """

    def __init__(self, documents: Sequence[Sequence[str]], spelled: Iterable[Spelled], marks: Marks, window: int) -> None:
        self.documents = documents
        self.windows: list[npt.NDArray[np.int64]] = []
        self._places: list[tuple[int, int]] = []  # of each window: its document, and its first target
        self._sums: list[Sums] = []
        for number, (sequence, starts, sizes) in enumerate(spelled):
            ends = np.cumsum(sizes)
            # The end of the text belongs to the last passage.
            owner = np.minimum(np.searchsorted(ends, [*starts, ends[-1]], side="right"), len(sizes) - 1)
            edges = [*cuts(sequence, window, marks), len(sequence)]
            begins = [0, *(edge - 1 for edge in edges[:-1])]
            self._sums.append(Sums(owner, np.zeros(len(sizes)), len(edges)))
            for begin, end in zip(begins, edges, strict=True):
                self.windows.append(sequence[begin:end])
                self._places.append((number, begin))

    def add(self, index: int, values: npt.NDArray[np.float64]) -> Iterator[tuple[int, list[Likelihood]]]:
        """Takes the log-probabilities of a window; its document with all passages where it was the last one out."""
        number, begin = self._places[index]
        sums = self._sums[number]
        np.subtract.at(sums.nats, sums.owner[begin : begin + len(values)], values)
        sums.out -= 1
        if sums.out:
            return
        tokens = np.bincount(sums.owner, minlength=len(sums.nats))
        yield (
            number,
            [
                Likelihood(float(nats), int(count), len(text.encode()))
                for nats, count, text in zip(sums.nats, tokens, self.documents[number], strict=True)
            ],
        )


def spelled(encoder: Encoder, documents: Iterable[Sequence[str]]) -> Iterator[Spelled]:
    """Documents by a tokenizer of ours."""
    anchor = anchor_ids(encoder.plain)
    for parts in documents:
        ids, starts = located(encoder.plain, "".join(parts), anchor)
        sequence = np.array([encoder.start_id, *ids, encoder.end_id], np.int64)
        yield Spelled(sequence, starts, [len(part) for part in parts])


def located(tokenizer: Any, text: str, anchor: Sequence[int]) -> tuple[list[int], list[int]]:
    """Token ids of a document, and where in it each begins, in characters.

    The ids are those of :func:`mlxforge.data.pieces.encode_pieces`: long texts are encoded in the same pieces.
    """
    ids: list[int] = []
    starts: list[int] = []
    begin = 0
    for piece in pieces((text,), PIECE):
        behind = bool(anchor) and begin > 0
        found = tokenizer.encode(ANCHOR + piece if behind else piece, add_special_tokens=False)
        skip = len(anchor) if behind and list(found.ids[: len(anchor)]) == list(anchor) else 0
        if behind and not skip:  # the anchor merged with what follows: no better than the piece alone
            found, behind = tokenizer.encode(piece, add_special_tokens=False), False
        ids += found.ids[skip:]
        starts += [begin + max(0, start - len(ANCHOR) * behind) for start, _ in found.offsets[skip:]]
        begin += len(piece)
    return ids, starts
