"""Schedules count updates; decay, clipping and LoRA+ hold for every rule."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxforge.core.settings import LoraSettings, TrainSettings
from mlxforge.training.optim import RULES, Optimizer, global_norm, learning_rate


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.lora_a = mx.ones((4, 4))
        self.lora_b = mx.ones((4, 4))


def rates(steps=10, **settings):
    given = TrainSettings(**({"learning_rate": 1.0, "warmup": 0} | settings))
    return [learning_rate(given, step, steps) for step in range(steps)]


def test_golden_schedules():
    assert rates(4, schedule="constant") == [1, 1, 1, 1]
    assert rates(4, schedule="linear") == [1, 0.75, 0.5, 0.25]
    assert rates(4, schedule="cosine") == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    assert rates(10, schedule="wsd") == pytest.approx([1] * 9 + [0.5])
    assert rates(4, schedule="linear", warmup=2) == [0.5, 1, 1, 0.5]
    assert rates(4, schedule="linear", warmup=0.5) == [0.5, 1, 1, 0.5]
    assert rates(4, schedule="linear", min_lr_ratio=0.5) == [1, 0.875, 0.75, 0.625]


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_goes_downhill(name):
    model = Two()
    optimizer = Optimizer(TrainSettings(optimizer=name))

    def loss(m):
        return mx.square(m["lora_a"] - 3).sum() + mx.square(m["lora_b"] + 1).sum()

    before = loss(model.parameters()).item()
    for _ in range(5):
        gradients = mx.grad(loss)(model.trainable_parameters())
        optimizer.update(model, gradients, global_norm(gradients), 0.05)
    assert loss(model.parameters()).item() < before


def test_adam_moves_by_the_rate_at_first():
    """With bias correction the first step of Adam is rate * sign(gradient)."""
    model = Two()
    gradients = {"lora_a": mx.full((4, 4), 0.3), "lora_b": mx.full((4, 4), -7.0)}
    Optimizer(TrainSettings(clip_norm=None)).update(model, gradients, global_norm(gradients), 0.01)
    assert mx.allclose(model.lora_a, mx.full((4, 4), 0.99), atol=1e-6)
    assert mx.allclose(model.lora_b, mx.full((4, 4), 1.01), atol=1e-6)


def test_decay_is_decoupled_and_the_same_for_all_rules():
    for name in RULES:
        model = Two()
        zero = {"lora_a": mx.zeros((4, 4)), "lora_b": mx.zeros((4, 4))}
        Optimizer(TrainSettings(optimizer=name, weight_decay=0.5)).update(model, zero, global_norm(zero), 0.1)
        assert mx.allclose(model.lora_a, mx.full((4, 4), 0.95), atol=1e-5), name


def test_lora_plus_scales_the_b_matrices():
    model = Two()
    gradients = {"lora_a": mx.ones((4, 4)), "lora_b": mx.ones((4, 4))}
    Optimizer(TrainSettings(lora=LoraSettings(plus_ratio=4.0))).update(model, gradients, global_norm(gradients), 0.01)
    assert mx.allclose(1 - model.lora_b, 4 * (1 - model.lora_a), rtol=1e-3)


def test_clipping_bounds_the_norm():
    model = Two()
    gradients = {"lora_a": mx.full((4, 4), 3.0), "lora_b": mx.full((4, 4), 4.0)}
    norm = global_norm(gradients)
    assert norm.item() == pytest.approx(20.0)
    Optimizer(TrainSettings(optimizer="sgd", clip_norm=1.0)).update(model, gradients, norm, 1.0)
    moved = mx.sqrt(mx.square(1 - model.lora_a).sum() + mx.square(1 - model.lora_b).sum())
    assert moved.item() == pytest.approx(1.0, rel=1e-4)
