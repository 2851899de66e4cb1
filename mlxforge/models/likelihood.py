"""Log-probabilities of given tokens, many sequences together: what perplexity, choices and preferences are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlxforge.models.scoring import Scorer

BATCH_TOKENS = 4096  # inputs computed together, padding included


class Scored(NamedTuple):
    """The sequence at ``place``: ``values`` (N - 1,) are natural log-probabilities of all its N tokens but the first.

    Those before ``start`` were not asked for and are 0.
    """

    place: int
    values: npt.NDArray[np.float64]


def log_likelihoods(
    scorer: Scorer, sequences: Sequence[Sequence[int] | npt.NDArray[Any]], starts: Sequence[int] | None = None
) -> Iterator[Scored]:
    """Every token's log-probability given those before it, in the order of like lengths.

    Sequences are padded on the right, which no causal model sees from the left, so attention, sliding windows and recurrent
    states are as in one sequence alone.

    Args:
        sequences: token ids, two or more each.
        starts: of each sequence the first token that is asked for, from 1 on; None asks for all.
    """
    lengths = np.array([len(sequence) for sequence in sequences]) - 1
    for batch in batches_of(lengths, BATCH_TOKENS):
        width = int(lengths[batch].max())
        inputs = np.zeros((len(batch), width), np.int64)
        wanted = np.zeros((len(batch), width), np.bool_)
        targets = np.zeros((len(batch), width), np.int64)
        for row, index in enumerate(batch):
            ids = np.asarray(sequences[index], np.int64)
            inputs[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
            wanted[row, (starts[index] - 1 if starts else 0) : len(ids) - 1] = True
        places = np.flatnonzero(wanted)
        hidden = scorer.hidden(mx.array(inputs))
        hidden = hidden.reshape(-1, hidden.shape[-1])[mx.array(places)]
        found = scorer.log_probs(hidden, mx.array(targets.reshape(-1)[places]))
        values = np.zeros(wanted.size, np.float64)
        values[places] = np.array(found.astype(mx.float32), np.float64)
        for row, index in enumerate(batch):
            yield Scored(int(index), values.reshape(wanted.shape)[row, : lengths[index]])


def batches_of(lengths: npt.NDArray[Any], budget: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions in batches of like length, the longest first, each of at most ``budget`` with its padding, or one alone."""
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < len(order):
        size = max(1, budget // max(1, int(lengths[order[begin]])))
        yield order[begin : begin + size]
        begin += size
