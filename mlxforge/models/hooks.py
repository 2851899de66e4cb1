"""Behaviour added to a model's layers in place, by giving them a class made from their own: no weight changes its name."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def checkpoint_layers(model: nn.Module) -> None:
    """Gradient checkpointing over every block, whatever its class. Twice is the same as once."""
    made: dict[Any, Any] = {}
    for layer in model.layers:
        kind = type(layer)
        if getattr(kind, "recomputes", False):
            continue
        if kind not in made:
            made[kind] = _recomputing(kind)
        layer.__class__ = made[kind]


def _recomputing(kind: Any) -> Any:
    """A block that keeps its input alone and computes its inside again in the backward pass."""

    class Recomputing(kind):
        recomputes = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            # Arrays go through the checkpoint so that gradients reach them; masks and caches are closed over.
            places = [i for i, arg in enumerate(args) if isinstance(arg, mx.array) and mx.issubdtype(arg.dtype, mx.floating)]

            # Dropout must draw the same mask when the inside is computed again, so its seed is fixed here.
            high, low = mx.random.state[0].tolist()
            seed = high << 32 | low

            def inner(parameters: dict[str, Any], arrays: list[mx.array]) -> Any:
                self.update(parameters)
                filled = list(args)
                for place, array in zip(places, arrays, strict=True):
                    filled[place] = array
                mx.random.seed(seed)
                return kind.__call__(self, *filled, **kwargs)

            return mx.checkpoint(inner)(self.trainable_parameters(), [args[i] for i in places])

    Recomputing.__name__ = kind.__name__
    return Recomputing


def add_embedding_noise(model: nn.Module, alpha: float) -> None:
    """NEFTune (arXiv 2310.05914): in training mode, uniform noise of size alpha / sqrt(L * D) on the input embeddings."""
    if alpha <= 0:
        return
    embedding = next(m for m in model.modules() if isinstance(m, (nn.Embedding, nn.QuantizedEmbedding)))
    kind: Any = type(embedding)

    class Noisy(kind):
        def __call__(self, tokens: mx.array) -> mx.array:
            vectors = kind.__call__(self, tokens)
            if not self.training:
                return vectors
            size = alpha / math.sqrt(vectors.shape[-2] * vectors.shape[-1])
            return vectors + mx.random.uniform(-size, size, vectors.shape).astype(vectors.dtype)

    embedding.__class__ = Noisy
