"""Bootstrap intervals and paired tests over rows (Efron and Tibshirani 1993; Noreen 1989). The same input, the same output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlxforge.evals.estimators import share

if TYPE_CHECKING:
    from mlxforge.evals.estimators import Array, Figure

DRAWS = 2000
LEVEL = 0.95
CELLS = 1 << 20  # draws x rows at once: 8 MiB
EXACT = 11  # 2^11 swaps are fewer than the draws would be: all of them are looked at


class Paired(NamedTuple):
    """``difference`` of two figures with its 95 % interval, and the two-sided p of no difference."""

    difference: float
    low: float
    high: float
    p: float


def point(terms: Array, figure: Figure) -> float | None:
    """The figure of all rows, each once; None where it is not finite."""
    value = float(figure(terms, np.ones((1, len(terms))))[0])
    return value if math.isfinite(value) else None


def interval(terms: Array, figure: Figure, seed: int = 0) -> tuple[float, float]:
    """Bounds of the percentile bootstrap at 95 %, stretched to the figure itself where a biased one lies outside.

    Rows that are all 0 or all 1 of a share would give an interval without width, however few they are: then the bound is the
    exact one of a share (Clopper and Pearson 1934), such as [0.69, 1] for ten of ten.
    """
    value = float(figure(terms, np.ones((1, len(terms))))[0])
    if figure is share and value in (0.0, 1.0):
        reach = 1 - ((1 - LEVEL) / 2) ** (1 / len(terms))
        return (0.0, reach) if value == 0 else (1 - reach, 1.0)
    values = np.concatenate([figure(terms, counts) for counts in _redraws(len(terms), seed)])
    return _bounds(values, value)


def _bounds(values: Array, value: float) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return value, value
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return min(float(low), value), max(float(high), value)


def _redraws(rows: int, seed: int) -> Iterator[Array]:
    """How often each row is drawn, rows of the set with replacement: (draws, rows) in pieces."""
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // rows)
    for start in range(0, DRAWS, at_once):
        draws = min(at_once, DRAWS - start)
        places = rng.integers(rows, size=(draws, rows)) + np.arange(draws)[:, None] * rows
        yield np.bincount(places.ravel(), minlength=draws * rows).reshape(draws, rows).astype(np.float64)


def paired(one: Array, other: Array, figure: Figure, seed: int = 0) -> Paired | None:
    """Two models on the same rows: ``one`` minus ``other``; None where a figure is not finite.

    p is of approximate randomisation: how often a difference as large comes of swapping the models row by row. With eleven
    differing rows or fewer all swaps are looked at and p is exact; else (hits + 1) / (draws + 1).
    """
    figures = point(one, figure), point(other, figure)
    if figures[0] is None or figures[1] is None:
        return None
    difference = figures[0] - figures[1]
    drawn = [figure(one, counts) - figure(other, counts) for counts in _redraws(len(one), seed)]
    low, high = _bounds(np.concatenate(drawn), difference)
    return Paired(difference, low, high, _p(one, other, figure, difference, seed))


def _p(one: Array, other: Array, figure: Figure, difference: float, seed: int) -> float:
    differing = np.flatnonzero((one != other).any(axis=1))
    both = np.concatenate([one, other])
    hits, draws = 0, 0
    # What rounding makes of equal differences must not tell them apart.
    least = abs(difference) - 1e-9 * max(1.0, abs(difference))
    for swapped in _swaps(len(differing), len(one), seed):
        mine = np.ones((len(swapped), len(one)))
        mine[:, differing] -= swapped
        found = figure(both, np.hstack([mine, 1 - mine])) - figure(both, np.hstack([1 - mine, mine]))
        hits += int(np.count_nonzero(abs(found) >= least))
        draws += len(swapped)
    return hits / draws if len(differing) <= EXACT else (hits + 1) / (draws + 1)


def _swaps(differing: int, rows: int, seed: int) -> Iterator[Array]:
    """Which of the differing rows are swapped: (draws, differing) of 0 and 1 in pieces."""
    if differing <= EXACT:
        yield (np.arange(2**differing)[:, None] >> np.arange(differing) & 1).astype(np.float64)
        return
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // (2 * rows))
    for start in range(0, DRAWS, at_once):
        yield rng.integers(2, size=(min(at_once, DRAWS - start), differing)).astype(np.float64)
