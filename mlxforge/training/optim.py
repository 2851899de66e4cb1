"""Update rules, schedules and clipping. Schedules count optimizer updates, never micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from mlxforge.core.settings import TrainSettings

# Learning rate and decay are set in Optimizer, one place for all rules.
RULES: dict[str, Callable[[], optimizers.Optimizer]] = {
    "adamw": lambda: optimizers.Adam(learning_rate=0.0, betas=[0.9, 0.999], eps=1e-8, bias_correction=True),
    "adafactor": lambda: optimizers.Adafactor(learning_rate=0.0, relative_step=False, scale_parameter=False, warmup_init=False),
    "muon": lambda: optimizers.Muon(learning_rate=0.0, momentum=0.95, weight_decay=0.0),
    "lion": lambda: optimizers.Lion(learning_rate=0.0, betas=[0.9, 0.99]),
    "sgd": lambda: optimizers.SGD(learning_rate=0.0, momentum=0.0),
}

WSD_DECAY = 0.2  # share of the updates in which wsd falls


def constant(_: float) -> float:
    """1 all the way."""
    return 1.0


def linear(progress: float) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def wsd(progress: float) -> float:
    """1, then a straight fall to 0 in the last fifth (warm-up, stable, decay)."""
    return min(1.0, (1.0 - progress) / WSD_DECAY)


SHAPES: dict[str, Callable[[float], float]] = {"constant": constant, "linear": linear, "cosine": cosine, "wsd": wsd}


def learning_rate(settings: TrainSettings, step: int, steps: int) -> float:
    """The rate of update ``step`` (counted from 0) of ``steps``; the first is already above 0, the peak follows warm-up."""
    warmup = settings.warmup * steps if settings.warmup < 1 else settings.warmup
    warmup = min(round(warmup), steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    shape = SHAPES[settings.schedule](progress)
    return settings.learning_rate * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * shape)


def global_norm(gradients: Any) -> mx.array:
    """L2 norm over all arrays of a tree, in float32."""
    return mx.sqrt(sum(mx.sum(mx.square(g.astype(mx.float32))) for _, g in tree_flatten(gradients)))


class Optimizer:
    """One of RULES, with decoupled weight decay on matrices and LoRA+ (arXiv 2402.12354) on top, the same for all rules."""

    def __init__(self, settings: TrainSettings) -> None:
        self.rule = RULES[settings.optimizer]()
        self.decay = settings.weight_decay
        self.clip = settings.clip_norm
        self.plus_ratio = settings.lora.plus_ratio

    def update(self, model: Any, gradients: Any, norm: mx.array, rate: float) -> None:
        """Clips by the global ``norm`` and applies one update at learning rate ``rate``, in place."""
        if self.clip is not None:
            factor = mx.minimum(1.0, self.clip / (norm + 1e-6))
            gradients = tree_map_with_path(lambda _, g: g * factor.astype(g.dtype), gradients)
        self.rule.learning_rate = rate
        before = model.trainable_parameters()
        decayed = tree_map_with_path(lambda _, p: p * (1 - rate * self.decay) if self.decay and p.ndim > 1 else p, before)
        after = self.rule.apply_gradients(gradients, decayed)
        if self.plus_ratio != 1.0:
            old = dict(tree_flatten(before))
            after = tree_map_with_path(
                lambda path, p: old[path] + self.plus_ratio * (p - old[path]) if path.endswith("lora_b") else p, after
            )
        model.update(after)

    @property
    def state(self) -> dict[str, mx.array]:
        """All arrays of the rule's state by dotted name."""
        return dict(tree_flatten(self.rule.state))

    @state.setter
    def state(self, arrays: dict[str, mx.array]) -> None:
        self.rule.state = tree_unflatten(list(arrays.items()))
