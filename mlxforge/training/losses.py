"""Losses as pure functions: (scorer, batch) -> Terms. Sums and counts, never means: the loop divides once."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from mlxforge.models.scoring import Scorer
from mlxforge.training.batches import Batch


class Terms(NamedTuple):
    """``total`` is a sum over ``items`` items; ``metrics`` are sums over the same items."""

    total: mx.array
    items: int
    metrics: dict[str, mx.array]


def token_log_probs(scorer: Scorer, batch: Batch) -> mx.array:
    """log p of each trained token (N,), in the order of ``batch.positions``."""
    hidden = scorer.hidden(batch.tokens, batch.segments)
    return scorer.log_probs(hidden.reshape(-1, hidden.shape[-1])[batch.positions], batch.targets)


def next_token(scorer: Scorer, batch: Batch) -> Terms:
    """Cross-entropy of the trained tokens in nats, summed."""
    return Terms(-token_log_probs(scorer, batch).sum(), batch.trained, {})
