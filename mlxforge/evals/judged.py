"""A judge held against exact match: how often the two say the same, and how often beyond chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlxforge.evals.answers import Terms, best, exact
from mlxforge.evals.graded import Graded

if TYPE_CHECKING:
    from mlxforge.evals.estimators import Array

RIGHT = 4  # points of five from which on a judge holds an answer right
_exact: Callable[[Graded], Terms] = best(exact)


def is_right(row: Graded) -> bool | None:
    """Whether the answer is a reference, word for word; None without an answer or a reference."""
    found = _exact(row)
    return None if found is None else found[0] == 1


def agrees(row: Graded) -> Terms:
    """1 where the judge's points and exact match say the same."""
    right = is_right(row)
    return None if row.rubric is None or right is None else (float((row.rubric >= RIGHT) == right),)


def both(row: Graded) -> Terms:
    """The cell of the table of judge and exact match that a row is in, as four terms."""
    right = is_right(row)
    return None if row.rubric is None or right is None else cell(row.rubric >= RIGHT, right, 2)


def cell(one: int, other: int, classes: int) -> tuple[float, ...]:
    """(classes²,) zeros with a one where ``one`` and ``other`` meet, for :func:`kappa`."""
    return tuple(float(place == one * classes + other) for place in range(classes * classes))


def kappa(terms: Array, counts: Array) -> Array:
    """Cohen's kappa (1960) of each draw: (observed - expected) / (1 - expected); nan where chance alone agrees always."""
    import numpy as np

    classes = math.isqrt(terms.shape[1])
    tables = (counts @ terms).reshape(-1, classes, classes) / counts.sum(axis=1)[:, None, None]
    observed = np.trace(tables, axis1=1, axis2=2)
    expected = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(expected < 1, (observed - expected) / (1 - expected), np.nan))
