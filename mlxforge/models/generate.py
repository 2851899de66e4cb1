"""Greedy continuation: what a run shows of itself while it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def continue_greedily(model: nn.Module, tokenizer: Any, prompt: Sequence[int], length: int, stop: set[int]) -> str:
    """The most likely continuation of at most ``length`` tokens, up to a token of ``stop``. Draws nothing at random."""
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    tokens = mx.array(list(prompt))[None]
    made: list[int] = []
    while len(made) < length:
        token = int(mx.argmax(model(tokens, cache=cache)[0, -1]).item())
        if token in stop:
            break
        made.append(token)
        tokens = mx.array([[token]])
    text: str = tokenizer.decode(made)
    return text
