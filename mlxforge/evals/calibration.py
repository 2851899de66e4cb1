"""Whether the confidence that an answer states is worth anything: how often it is right where it says it is.

Right is what ``command_exact`` says. What is done at which confidence is in the row's schema (``x-thresholds``, as
``mlxforge synth commands`` writes it), else the format's own limits hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from mlxforge.core.errors import DataError, MlxforgeError
from mlxforge.data.commands import LIMITS, Action, Thresholds
from mlxforge.evals.answers import Terms
from mlxforge.evals.commands import called, right
from mlxforge.evals.graded import Graded

if TYPE_CHECKING:
    from mlxforge.evals.estimators import Array

BINS = 10


def binned(row: Graded) -> Terms:
    """Of each of ten equal bins of confidence: rows, sum of the confidence, sum of what is right; none without a confidence."""
    stated, correct = _confidence(row), right(row)
    if stated is None or correct is None:
        return None
    place = min(int(stated * BINS), BINS - 1)
    terms = [0.0] * (3 * BINS)
    terms[place], terms[BINS + place], terms[2 * BINS + place] = 1.0, stated, float(correct)
    return tuple(terms)


def ece(terms: Array, counts: Array) -> Array:
    """Expected calibration error (arXiv 1706.04599, equation 3): |confidence - accuracy| of bins, weighted by rows."""
    sums = counts @ terms
    gaps = abs(sums[:, BINS : 2 * BINS] - sums[:, 2 * BINS :]).sum(axis=1)
    return gaps / sums[:, :BINS].sum(axis=1)


def rate(*actions: Action) -> Callable[[Graded], Terms]:
    """1 where the stated confidence calls for one of these actions; 0 also where none is stated."""

    def terms(row: Graded) -> Terms:
        return None if row.answer is None else (float(_called_for(row) in actions),)

    return terms


def accuracy(*actions: Action) -> Callable[[Graded], Terms]:
    """1 where the answer is right, of the rows whose stated confidence calls for one of these actions."""

    def terms(row: Graded) -> Terms:
        correct = right(row) if _called_for(row) in actions else None
        return None if correct is None else (float(correct),)

    return terms


def _confidence(row: Graded) -> float | None:
    found = called(row.answer) if row.answer is not None else None
    return found and found.confidence


def _called_for(row: Graded) -> Action | None:
    stated = _confidence(row)
    return None if stated is None else limits(row.schema or {}).action(stated)


def limits(schema: Mapping[str, Any]) -> Thresholds:
    """The thresholds that a schema names.

    Raises:
        DataError: they are none.
    """
    try:
        return msgspec.convert(schema.get(LIMITS, {}), Thresholds)
    except (msgspec.ValidationError, MlxforgeError) as error:
        raise DataError(f"no thresholds: {error}", where=LIMITS, fix="such as run .9, confirm .7, suggest .4") from error
