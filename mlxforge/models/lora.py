"""What is trained: LoRA, rsLoRA and DoRA layers of mlx-lm over chosen linear layers, or every weight.

LoRA arXiv 2106.09685; rsLoRA 2312.03732 (scale alpha / sqrt(rank)); DoRA 2402.09353.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlxforge.core.errors import ConfigError, ModelError, did_you_mean
from mlxforge.core.files import write_atomic
from mlxforge.core.settings import LoraSettings
from mlxforge.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_peft

LINEAR = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
CONFIG_FILE, WEIGHTS_FILE = ADAPTER_CONFIG, ADAPTER_WEIGHTS


class DirectLoRALinear(LoRALinear):
    """mlx-lm's layer with the update added inside the matrix product: one pass over the output instead of three.

    The small matrices are cast to the input's type, so that a bfloat16 base computes in bfloat16 while they stay float32.
    """

    def __call__(self, x: mx.array) -> mx.array:
        low = self.dropout(x) @ self.lora_a.astype(x.dtype)
        return mx.addmm(self.linear(x), low, (self.scale * self.lora_b).astype(x.dtype))


def scale(settings: LoraSettings) -> float:
    """Factor of the update: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
    return settings.alpha / (math.sqrt(settings.rank) if settings.kind == "rslora" else settings.rank)


def linear_layers(model: nn.Module) -> list[str]:
    """Paths inside a block of every linear layer that any block has: ``self_attn.q_proj``, ``mlp.up_proj``, …"""
    paths: dict[str, None] = {}
    for layer in model.layers:
        for path, module in layer.named_modules():
            if isinstance(module, LINEAR):
                paths.setdefault(path)
    return list(paths)


def target_paths(model: nn.Module, targets: list[str]) -> list[str]:
    """The linear layers that ``targets`` name, by last part (``q_proj``) or whole path (``self_attn.q_proj``)."""
    paths = linear_layers(model)
    if targets == ["all"]:
        return paths
    known = set(paths) | {path.rpartition(".")[2] for path in paths}
    for target in targets:
        if target not in known:
            raise ConfigError(f"lora.targets: the model has no linear layer '{target}'", fix=did_you_mean(target, known))
    return [path for path in paths if path in targets or path.rpartition(".")[2] in targets]


def adapter_config(model: nn.Module, settings: LoraSettings, base: str) -> dict[str, Any]:
    """``adapter_config.json`` as mlx-lm reads it, with what mlx-lm has no word for under ``mlxforge``."""
    depth = len(model.layers)
    if settings.layers is not None and settings.layers > depth:
        raise ConfigError(f"lora.layers: {settings.layers} layers asked, the model has {depth}", fix=f"at most {depth}")
    return {
        "model": base,
        "fine_tune_type": {"rslora": "lora"}.get(settings.kind, settings.kind),
        "num_layers": settings.layers or depth,
        "lora_parameters": {
            "rank": settings.rank,
            "scale": scale(settings),
            "dropout": settings.dropout,
            "keys": target_paths(model, settings.targets),
        },
        "mlxforge": {"kind": settings.kind, "alpha": settings.alpha},
    }


def make_trainable(model: nn.Module, config: dict[str, Any], seed: int = 0) -> None:
    """Freezes the model and makes what ``config`` (see :func:`adapter_config`) names trainable, in place."""
    model.freeze()
    last = model.layers[-config["num_layers"] :]
    if config["fine_tune_type"] == "full":
        whole = config["num_layers"] == len(model.layers)
        parts = [model] if whole else last
        if any("scales" in module for part in parts for module in part.modules()):
            # Packed weights are whole numbers: there is no gradient to follow.
            raise ConfigError("lora.kind: full training needs a base that is not quantized", fix="use lora.kind=lora")
        for part in parts:
            part.unfreeze()
        return
    mx.random.seed(seed)
    dora = config["fine_tune_type"] == "dora"
    try:
        linear_to_lora_layers(model, config["num_layers"], config["lora_parameters"], use_dora=dora)
    except ValueError as error:
        raise ConfigError(f"lora.kind: {error}", fix="choose lora.targets without these layers, or lora.kind=lora") from error
    for module in model.modules():
        if type(module) is LoRALinear:
            module.__class__ = DirectLoRALinear


def trainable(model: nn.Module) -> dict[str, mx.array]:
    """The trained arrays by dotted name."""
    return dict(tree_flatten(model.trainable_parameters()))


def save_adapter(directory: Path, weights: dict[str, mx.array], config: dict[str, Any]) -> None:
    """Writes ``adapters.safetensors`` and ``adapter_config.json`` into ``directory`` (which should be a new one)."""
    mx.save_safetensors(str(directory / WEIGHTS_FILE), weights, {"format": "mlx"})
    write_atomic(directory / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def read_adapter(
    directory: Path, model: nn.Module | None = None, own: Mapping[str, mx.array] | None = None
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """The weights and the config of an adapter folder, as mlx-lm has them.

    One of PEFT is converted; that needs the bare base, ``model``, for its names and shapes, and ``own``, its weights by name,
    where it does not hold them itself.

    Raises:
        ModelError: a file is missing, truncated or no adapter; see also :func:`mlxforge.models.peft.read_peft`.
    """
    if model is not None and is_peft(directory):
        from mlxforge.models.peft import read_peft

        return read_peft(directory, model, own)
    try:
        config = json.loads((directory / CONFIG_FILE).read_text())
        weights = dict(mx.load(str(directory / WEIGHTS_FILE)))
        return weights, {"fine_tune_type": "lora"} | config | {"lora_parameters": config["lora_parameters"]}
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"not a whole adapter: {error}", where=str(directory), fix="name a run or adapter folder") from error


def continued_config(kept: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The config to go on training an adapter with: its own structure; and in words what of it was wanted otherwise."""
    own, asked = kept["lora_parameters"], wanted["lora_parameters"]
    parts = {
        "kind": (kept["fine_tune_type"], wanted["fine_tune_type"]),
        "layers": (kept["num_layers"], wanted["num_layers"]),
        "rank": (own["rank"], asked["rank"]),
        "scale": (own["scale"], asked["scale"]),
    }
    words = [f"{name} {value}" for name, (value, other) in parts.items() if value != other]
    if set(own["keys"]) != set(asked["keys"]):
        words.append("targets")
    return {key: value for key, value in kept.items() if key != "sparse"} | {
        "model": wanted["model"],
        "lora_parameters": own | {"dropout": asked["dropout"]},
    }, ", ".join(words)


def apply_adapter(model: nn.Module, directory: Path) -> None:
    """Puts a saved adapter over its base for use: in place, frozen, without dropout.

    Raises:
        ModelError: the folder holds no whole adapter, or one of another model.
    """
    weights, config = read_adapter(directory, model)
    try:
        make_trainable(model, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"not an adapter that mlx-lm reads: {error}", where=str(directory / CONFIG_FILE)) from error
    load_adapter(model, weights, config, str(directory))
    model.freeze()
    model.eval()


def load_adapter(model: nn.Module, weights: dict[str, mx.array], config: dict[str, Any], where: str) -> None:
    """:func:`load_weights` for an adapter that may lack layers: a full one over another run holds the weights that changed,
    one of PEFT its own choice of layers; the rest stays as it begins, which changes nothing."""
    partial = config["fine_tune_type"] == "full" or config.get("sparse")
    load_weights(model, trainable(model) | weights if partial else weights, where)


def load_weights(model: nn.Module, weights: dict[str, mx.array], where: str) -> None:
    """Puts saved trained arrays in place; names and shapes must be exactly the model's own."""
    own = trainable(model)
    strange = [f"{name} {tuple(array.shape)}" for name, array in weights.items() if name not in own]
    strange += [
        f"{name} {tuple(array.shape)} where the model has {tuple(own[name].shape)}"
        for name, array in weights.items()
        if name in own and own[name].shape != array.shape
    ]
    missing = sorted(set(own) - set(weights))
    if strange or missing:
        first = (strange or [f"{missing[0]} is missing"])[0]
        count = len(strange) + len(missing)
        raise ModelError(
            f"the adapter is of another model: {first} ({count} such tensors)",
            where=where,
            fix="use the base it was trained on",
        )
    model.load_weights(list(weights.items()), strict=False)
