"""What is forecast against what MLX measures, on tiny models over settings of every kind."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxforge.core.config import flags_layer, resolve
from mlxforge.core.settings import CptConfig
from mlxforge.models.cpu import install
from mlxforge.models.hooks import checkpoint_layers
from mlxforge.models.lora import adapter_config, make_trainable
from mlxforge.models.scoring import Scorer
from mlxforge.models.shapes import shapes, skeleton
from mlxforge.models.tiny import find, special_tokens, tiny_config
from mlxforge.runs.forecast import PARTS, Batch, Work, forecast
from mlxforge.training import batches
from mlxforge.training.losses import next_token

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 3, "vocab_size": 2048}


def config_of(family="llama", **changes):
    row, kind = find(family)
    packed = {"quantization": {"bits": 4, "group_size": 64}} if changes.pop("packed_weights", False) else {}
    return tiny_config(row, kind, special_tokens(row), SHAPE | changes) | packed


def measured(config, settings, lines, width, trained, dense):
    """MLX's peak over a forward and backward pass, weights included, in bytes."""
    model = skeleton(config)
    mx.eval(model.parameters())
    install(model)
    make_trainable(model, adapter_config(model, settings.lora, ""))
    if settings.grad_checkpoint:
        checkpoint_layers(model)
    mx.eval(model.parameters())
    scorer = Scorer(model)
    model.train()
    segments = np.repeat(np.arange(1, 5), width // 4)[None].repeat(lines, 0).astype(np.int32)
    batch = batches.Batch(
        mx.zeros((lines, width), mx.int32),
        mx.array(segments) if dense else None,
        mx.array(np.linspace(0, lines * width - 1, trained).astype(np.int32)),
        mx.zeros((trained,), mx.int32),
        lines * width,
        trained,
        lines * width,
    )
    mx.eval(batch.tokens, batch.positions, batch.targets)
    step = nn.value_and_grad(model, lambda one: next_token(scorer, one)[0])
    mx.eval(step(batch))
    others = mx.get_active_memory() - sum(array.nbytes for _, array in nn.utils.tree_flatten(model.parameters()))
    mx.reset_peak_memory()
    mx.eval(step(batch))
    return mx.get_peak_memory() - others


CASES = {
    "lora": ({}, {}),
    "dora on packed weights": ({"lora.kind": "dora"}, {"packed_weights": True}),
    "full": ({"lora.kind": "full"}, {"vocab_size": 4096}),
    "recomputed": ({"grad_checkpoint": True}, {"num_hidden_layers": 6}),
    "packed lines": ({"batching": "packed"}, {}),
    "few trained": ({}, {"vocab_size": 16384}),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_is_forecast_within_a_fifth(case):
    flags, shape = CASES[case]
    settings, config = resolve(CptConfig, flags_layer(flags)), config_of(**shape)
    lines, width, dense = 4, 256, settings.batching == "packed"
    trained = 100 if case == "few trained" else lines * width
    peak = measured(config, settings, lines, width, trained, dense)
    batch = Batch(lines * width, trained, lines * width**2, dense)
    parts = forecast(settings, Work((batch,), 0), model=shapes(config, settings.lora)).parts
    # No optimizer stands beside this pass.
    said = sum(parts.values()) - parts["optimizer"]
    assert set(parts) == set(PARTS)
    assert 0.8 < said / peak < 1.2


def test_a_large_model_is_counted_without_its_weights():
    config = {
        "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672, "vocab_size": 128256,
        "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "tie_word_embeddings": False, "quantization": {"bits": 4, "group_size": 64},
    }  # fmt: skip
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    found = shapes(config, CptConfig().lora, "bfloat16")
    assert found.parameters == 70_553_706_496  # the published count
    assert found.weights == pytest.approx(70.55e9 * 4.5 / 8, rel=0.001)  # 4 bits, and 16 + 16 bits a group of 64
    assert mx.get_peak_memory() - before < 1 << 20
