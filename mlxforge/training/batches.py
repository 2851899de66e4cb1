"""What the loop computes with: a collated batch as MLX arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Batch:
    """B lines of L tokens. Only the N trained positions meet the output head.

    ``tokens`` (B, L) int32; ``segments`` (B, L) int32 or None where each line holds one row; ``positions`` (N,) indices into
    the B * L hidden states; ``targets`` (N,) the token that follows each; ``real`` counts tokens that are not padding.
    """

    tokens: mx.array
    segments: mx.array | None
    positions: mx.array
    targets: mx.array
    real: int
    trained: int
    slots: int


def to_batch(collated: dict[str, Any]) -> Batch:
    """A batch from the arrays of ``data.batch.collate``."""
    positions = np.flatnonzero(collated["mask"])
    segments = collated["segments"]
    return Batch(
        tokens=mx.array(collated["tokens"]),
        segments=None if segments.max(initial=0) <= 1 else mx.array(segments),
        positions=mx.array(positions.astype(np.int32)),
        targets=mx.array(collated["targets"].reshape(-1)[positions]),
        real=int(np.count_nonzero(segments)),
        trained=len(positions),
        slots=int(segments.size),
    )
