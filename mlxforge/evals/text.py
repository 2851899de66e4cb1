"""Metrics of log-probabilities: of whole texts, of choices, of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mlxforge.evals.answers import Terms
from mlxforge.evals.graded import Graded, Likelihood


def per_token(row: Graded) -> Terms:
    """Nats and tokens: perplexity is exp(sum / sum)."""
    return row.likelihood and (row.likelihood.nats, row.likelihood.tokens)


def per_byte(row: Graded) -> Terms:
    """Bits and bytes of UTF-8: bits-per-byte do not depend on the tokenizer."""
    return row.likelihood and (row.likelihood.nats / math.log(2), row.likelihood.bytes)


def whole(one: Likelihood) -> float:
    """Nats of the whole continuation."""
    return one.nats


def by_byte(one: Likelihood) -> float:
    """Nats a byte: long choices are not at a disadvantage."""
    return one.nats / max(one.bytes, 1)


def choice(cost: Callable[[Likelihood], float]) -> Callable[[Graded], Terms]:
    """1 where the right choice is the likeliest; among k that are equally likely, 1/k, as a guess would have it."""

    def terms(row: Graded) -> Terms:
        if not row.continuations:
            return None
        return (_won([cost(one) for one in row.continuations], row.right),)

    return terms


def _won(costs: Sequence[float], right: int) -> float:
    if any(map(math.isnan, costs)):
        return math.nan
    least = min(costs)
    return 1 / costs.count(least) if costs[right] == least else 0.0


def margin(row: Graded) -> Terms:
    """By how many nats the chosen answer is likelier than the rejected one."""
    if len(row.continuations) != 2:
        return None
    chosen, rejected = row.continuations
    return (rejected.nats - chosen.nats,)
