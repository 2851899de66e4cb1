"""Several rows on one line that cannot see each other, without touching a model's code.

Every model in mlx-lm asks its cache for the attention mask and for the keys and values to attend to. A stand-in that answers
with a block-diagonal causal mask, and hands keys and values straight back, turns any of them into a packed model. Rotary
positions are relative, so a row in the middle of a line needs no reset.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx


class PackedMask:
    """Stands where a layer's KV cache would. ``segments`` (B, L): 1, 2, … for the rows of a line, 0 for padding."""

    offset = 0

    def __init__(self, segments: mx.array) -> None:
        self.segments = segments
        self._masks: dict[int | None, mx.array] = {}

    def make_mask(self, length: int, window_size: int | None = None, **_: Any) -> mx.array:
        """Boolean (B, 1, L, L): position q sees k if both are of one row, k <= q, and q - k < window_size."""
        if window_size not in self._masks:
            same = self.segments[:, :, None] == self.segments[:, None, :]
            position = mx.arange(length)
            distance = position[:, None] - position[None, :]
            seen = distance >= 0
            if window_size is not None:
                seen = seen & (distance < window_size)
            self._masks[window_size] = (same & seen)[:, None]
        return self._masks[window_size]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Nothing is stored: each line is whole."""
        return keys, values


def packed_cache(layers: int, segments: mx.array) -> list[PackedMask]:
    """The ``cache`` argument that makes a model treat (B, L) lines as packed rows; one mask serves all layers."""
    mask = PackedMask(segments)
    return [mask] * layers
