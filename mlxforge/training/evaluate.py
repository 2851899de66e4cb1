"""Scoring of fixed sets: the same rows in the same batches every time, taking nothing from the training's randomness."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlxforge.models.scoring import Scorer
from mlxforge.training.batches import Batch
from mlxforge.training.objectives import Loss


@dataclass(frozen=True)
class Score:
    """Mean ``loss`` in nats a trained token; ``bpb``: bits for all of them over the bytes of the text they spell."""

    loss: float
    tokens: int
    bytes: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bpb(self) -> float:
        """loss * tokens / (ln 2 * bytes)."""
        return self.loss * self.tokens / (math.log(2) * max(self.bytes, 1))

    def result(self) -> dict[str, Any]:
        """The three figures that a result shows, and the objective's own."""
        return {"loss": self.loss, "perplexity": self.perplexity, "bpb": self.bpb} | self.metrics


def score(scorer: Scorer, loss: Loss, batches: Iterable[Batch], text_bytes: int) -> Score:
    """Sums over all batches, divided once."""
    started = time.perf_counter()
    total, count = 0.0, 0
    metrics: dict[str, float] = {}
    for batch in batches:
        terms = loss(scorer, batch)
        mx.eval(terms.total, terms.metrics)
        total, count = total + float(terms.total.item()), count + terms.items
        metrics = {key: metrics.get(key, 0.0) + float(value.item()) for key, value in terms.metrics.items()}
    divisor = max(count, 1)
    means = {key: value / divisor for key, value in metrics.items()}
    return Score(total / divisor, count, text_bytes, time.perf_counter() - started, means)
