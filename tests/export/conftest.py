"""Tiny bases in the layout of the hub, and adapters over them."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import pytest

from mlxforge.core.settings import LoraSettings
from mlxforge.models.load import load
from mlxforge.models.lora import adapter_config, make_trainable, save_adapter, trainable
from mlxforge.models.tiny import make_tiny

STACK = re.compile(r"(.+)\.switch_mlp\.(\w+)\.weight")
MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
SHIFTED = ("layernorm.weight", "model.norm.weight", "q_norm.weight", "k_norm.weight")


def split_experts(weights, words):
    for name in [one for one in weights if STACK.fullmatch(one)]:
        path, word = STACK.fullmatch(name).groups()
        for row, expert in enumerate(weights.pop(name)):
            weights[f"{path}.experts.{row}.{words.get(word, word)}.weight"] = expert


def fused_experts(weights, whole, down):
    for name in [one for one in weights if one.endswith("switch_mlp.gate_proj.weight")]:
        path = name.removesuffix(".switch_mlp.gate_proj.weight")
        gate, up = (weights.pop(f"{path}.switch_mlp.{word}_proj.weight") for word in ("gate", "up"))
        weights[f"{path}.{whole}"] = mx.concatenate([gate, up], axis=1)
        weights[f"{path}.{down}"] = weights.pop(f"{path}.switch_mlp.down_proj.weight")


def transposed(weights, name):
    for one in [one for one in weights if one.endswith(name)]:
        weights[one] = mx.contiguous(weights[one].swapaxes(1, 2))


def qwen3_5(weights):
    transposed(weights, "conv1d.weight")
    for name in list(weights):
        array = weights.pop(name)
        if array.ndim == 1 and name.endswith(SHIFTED):
            array = array - 1.0
        weights[name.replace("language_model.model.", "model.language_model.")] = array


def qwen3_5_moe(weights):
    fused_experts(weights, "experts.gate_up_proj", "experts.down_proj")
    qwen3_5(weights)


# What the hub's files hold otherwise than mlx-lm's.
LAYOUTS = {
    "qwen3_moe": lambda weights: split_experts(weights, {}),
    "mixtral": lambda weights: split_experts(weights, MIXTRAL),
    "granitemoe": lambda weights: fused_experts(weights, "input_linear.weight", "output_linear.weight"),
    "lfm2": lambda weights: transposed(weights, "conv.conv.weight"),
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
}


@pytest.fixture
def hub_base():
    """``hub_base(model_type, folder)``: a tiny base with the names and the layout of the hub."""

    def make(family: str, folder: Path, **options) -> Path:
        base = make_tiny(family, folder, **options)
        if family in LAYOUTS:
            file = base / "model.safetensors"
            weights = dict(mx.load(str(file)))
            LAYOUTS[family](weights)
            mx.eval(weights)
            file.unlink()
            mx.save_safetensors(str(file), weights, {"format": "pt"})
        return base

    return make


@pytest.fixture
def make_adapter():
    """``make_adapter(folder, base, seed=1, **lora)``: a random adapter that moves the logits."""

    def make(folder: Path, base: Path, seed: int = 1, **lora) -> Path:
        folder.mkdir(parents=True)
        model = load(str(base), "float32").model
        config = adapter_config(model, LoraSettings(**{"rank": 4, **lora}), str(base))
        make_trainable(model, config)
        mx.random.seed(seed)
        moved = {name: array + 0.05 * mx.random.normal(array.shape) for name, array in trainable(model).items()}
        save_adapter(folder, moved, config)
        return folder

    return make
