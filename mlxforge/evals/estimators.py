"""From rows to one figure: a row gives a few numbers (its terms), and a figure is had from the terms of any draw of rows.

Each function takes ``terms`` (rows, k) and ``counts`` (draws, rows), how often each row is in a draw, and gives (draws,).
NumPy is imported where it is called, so that the table of metrics can be read without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]
    Figure = Callable[[Array, Array], Array]


def mean(terms: Array, counts: Array) -> Array:
    """Mean of the first term."""
    return (counts @ terms[:, 0]) / counts.sum(axis=1)


def share(terms: Array, counts: Array) -> Array:
    """The same of terms that lie in [0, 1]."""
    return mean(terms, counts)


def ratio(terms: Array, counts: Array) -> Array:
    """Sum of the first terms over the sum of the second ones; nan or infinite where that is 0."""
    import numpy as np

    sums = counts @ terms
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1])


def exp_ratio(terms: Array, counts: Array) -> Array:
    """exp of :func:`ratio`; infinite where that overflows."""
    import numpy as np

    with np.errstate(over="ignore"):
        return np.asarray(np.exp(ratio(terms, counts)))


def quantile(part: float) -> Figure:
    """The quantile of the first term, between two rows by straight line, as ``numpy.quantile`` has it."""

    def figure(terms: Array, counts: Array) -> Array:
        order = terms[:, 0].argsort(kind="stable")
        values, upto = terms[order, 0], counts[:, order].cumsum(axis=1)
        last = upto[:, -1] - 1
        place = part * last
        below = place // 1
        # The j-th smallest of a draw is the first row up to which more than j rows were drawn.
        low, high = (values[(upto > at[:, None]).argmax(axis=1)] for at in (below, (below + 1).clip(max=last)))
        return low + (high - low) * (place - below)

    return figure
