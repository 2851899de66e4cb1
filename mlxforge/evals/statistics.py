"""Bootstrap intervals and paired tests over rows. The same rows in any order and the same seed give the same numbers."""

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
EXACT = 11  # the 2^11 ways to swap eleven rows are about as many as the draws: all of them are looked at
FEW = 8  # rows for each distinct one, from which on counts are drawn faster than rows


class Paired(NamedTuple):
    """``difference`` of two figures with its 95 % interval, and the two-sided p of no difference."""

    difference: float
    low: float
    high: float
    p: float


def point(terms: Array, figure: Figure) -> float | None:
    """The figure of all rows, each once; None where it is not finite."""
    value = float(figure(*_whole(terms))[0])
    return value if math.isfinite(value) else None


def _whole(terms: Array) -> tuple[Array, Array]:
    distinct, times = _distinct(terms)
    return distinct, times[None].astype(np.float64)


def _distinct(terms: Array) -> tuple[Array, Array]:
    distinct, times = np.unique(terms, axis=0, return_counts=True)
    return distinct, times


def interval(terms: Array, figure: Figure, seed: int = 0) -> tuple[float, float]:
    """Bounds of the 95 % percentile bootstrap (Efron 1979) of a finite figure, stretched to the figure where it lies outside.

    Draws that have no finite figure are left out. Rows that are all 0 or all 1 of a share would give an interval without
    width, however few they are: then the bound is that of Clopper and Pearson (1934), such as [0.69, 1] for ten of ten.
    """
    value = float(figure(*_whole(terms))[0])
    if figure is share and value in (0.0, 1.0):
        reach = 1 - ((1 - LEVEL) / 2) ** (1 / len(terms))
        return (0.0, reach) if value == 0 else (1 - reach, 1.0)
    distinct, times = _distinct(terms)
    return _bounds([figure(distinct, counts) for counts in _redraws(times, seed)], value)


def _bounds(drawn: list[Array], value: float) -> tuple[float, float]:
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(values) else (value, value)
    return min(float(low), value), max(float(high), value)


def _redraws(times: Array, seed: int) -> Iterator[Array]:
    """How often each distinct row is among rows drawn with replacement, as many as there are: (draws, distinct) in pieces."""
    rng = np.random.default_rng(seed)
    rows, labels = int(times.sum()), np.repeat(np.arange(len(times)), times)
    for draws in _pieces(DRAWS, rows):
        if len(times) * FEW <= rows:
            counts = rng.multinomial(rows, times / rows, size=draws)
        else:
            drawn = labels[rng.integers(rows, size=(draws, rows))] + np.arange(draws)[:, None] * len(times)
            counts = np.bincount(drawn.ravel(), minlength=draws * len(times)).reshape(draws, -1)
        yield counts.astype(np.float64)


def _pieces(draws: int, width: int) -> Iterator[int]:
    at_once = max(1, CELLS // max(width, 1))
    for start in range(0, draws, at_once):
        yield min(at_once, draws - start)


def paired(one: Array, other: Array, figure: Figure, seed: int = 0) -> Paired | None:
    """Two models on the same rows: ``one`` minus ``other``; None where a figure is not finite.

    p is of approximate randomisation (Noreen 1989): how often a difference as large comes of swapping the models row by row.
    Where eleven rows or fewer differ, all swaps are looked at and p is exact; else it is (hits + 1) / (draws + 1).
    """
    figures = point(one, figure), point(other, figure)
    if figures[0] is None or figures[1] is None:
        return None
    difference = figures[0] - figures[1]
    width = one.shape[1]
    pairs, times = _distinct(np.hstack([one, other]))
    mine, theirs = pairs[:, :width], pairs[:, width:]
    drawn = [figure(mine, counts) - figure(theirs, counts) for counts in _redraws(times, seed)]
    low, high = _bounds(drawn, difference)
    # What rounding makes of equal differences must not tell them apart.
    least = abs(difference) - 1e-9 * max(abs(figures[0]), abs(figures[1]))
    return Paired(difference, low, high, _p(mine, theirs, times, figure, least, seed))


def _p(one: Array, other: Array, times: Array, figure: Figure, least: float, seed: int) -> float:
    """Share of the swaps whose difference is ``least`` or more; ``times`` says how often each pair of rows is there."""
    differs = (one != other).any(axis=1)
    exact = int(times[differs].sum()) <= EXACT
    if exact:  # each differing row by itself
        places = np.repeat(np.arange(len(times)), np.where(differs, times, 1))
        one, other, differs, times = one[places], other[places], differs[places], np.where(differs, 1, times)[places]
    both = np.concatenate([one, other])
    hits = draws = 0
    for swapped in _all_swaps(differs) if exact else _random_swaps(np.where(differs, times, 0), seed):
        kept = times - swapped
        found = figure(both, np.hstack([kept, swapped])) - figure(both, np.hstack([swapped, kept]))
        hits, draws = hits + int(np.count_nonzero(abs(found) >= least)), draws + len(found)
    return hits / draws if exact else (hits + 1) / (draws + 1)


def _all_swaps(differs: Array) -> Iterator[Array]:
    """Every way to swap some of the differing rows: (ways, rows) of 0 and 1 in pieces."""
    places, start = np.flatnonzero(differs), 0
    for ways in _pieces(2 ** len(places), 2 * len(differs)):
        swapped = np.zeros((ways, len(differs)))
        swapped[:, places] = np.arange(start, start + ways)[:, None] >> np.arange(len(places)) & 1
        yield swapped
        start += ways


def _random_swaps(times: Array, seed: int) -> Iterator[Array]:
    """How many of each pair of rows are swapped when a coin is thrown for every one: (draws, distinct) in pieces."""
    rng = np.random.default_rng(seed)
    for draws in _pieces(DRAWS, 2 * len(times)):
        yield rng.binomial(times, 0.5, size=(draws, len(times))).astype(np.float64)
