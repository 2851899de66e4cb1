"""A run as the base of another: its adapter stays as it is under the new one, and both are published as one.

Two low-rank updates are one of the ranks' sum: ``s1 A1 B1 + s2 A2 B2 = [A1 | A2] [s1 B1; s2 B2]``. So what comes out is an
adapter of the first base, in mlx-lm's own format, whatever the base is packed as. Where the run below is no plain LoRA its
weights are merged, and what comes out holds whole weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

from mlxforge.core.errors import ConfigError
from mlxforge.models.lora import DirectLoRALinear, apply_adapter, make_trainable, read_adapter

Weights = dict[str, mx.array]
Publish = Callable[[Weights, dict[str, Any]], tuple[Weights, dict[str, Any]]]
LORA = (LoRALinear, LoRASwitchLinear)


def stack(model: nn.Module, config: dict[str, Any], seed: int, below: Path) -> Publish:
    """Puts the adapter in ``below`` under a new one that ``config`` names, in place; only the new one is trainable.

    Returns:
        what makes the published adapter of the new one's weights and config.

    Raises:
        ConfigError: the two kinds of adapters cannot be one.
    """
    weights, base = read_adapter(below, model)
    if base["fine_tune_type"] == "lora" and config["fine_tune_type"] == "lora":
        make_trainable(model, config, seed)
        for path in paths(weights):
            put_under(model, path, weights, base["lora_parameters"]["scale"])
        return lambda own, own_config: (joined(weights, base, own, own_config), joined_config(base, own_config))
    return _merge(model, config, seed, below)


def paths(weights: Weights) -> list[str]:
    """The layers that a LoRA adapter changes."""
    return sorted(name.removesuffix(".lora_a") for name in weights if name.endswith(".lora_a"))


def module_at(model: nn.Module, path: str) -> Any:
    """The module of a dotted path."""
    module: Any = model
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else module[part]
    return module


def put_under(model: nn.Module, path: str, weights: Weights, scale: float) -> None:
    """The frozen update of one layer, under the trained one where the layer has one."""
    found = module_at(model, path)
    linear = found.linear if isinstance(found, LORA) else found
    if isinstance(linear, (nn.Embedding, nn.QuantizedEmbedding)):
        what = f"an adapter of embeddings ({path}) cannot lie under another one"
        raise ConfigError(what, where="model", fix="merge it first: mlxforge fuse")
    a, b = weights[f"{path}.lora_a"], weights[f"{path}.lora_b"]
    switch = isinstance(linear, (SwitchLinear, QuantizedSwitchLinear))
    kind: Any = LoRASwitchLinear if switch else LoRALinear
    under = kind.from_base(linear, r=a.shape[1] if switch else a.shape[-1], scale=scale, dropout=0.0)
    under.lora_a, under.lora_b = a, b
    if not switch:
        under.__class__ = DirectLoRALinear
    under.freeze()
    if isinstance(found, LORA):
        found.linear = under
    else:
        model.update_modules(tree_unflatten([(path, under)]))


def joined(below: Weights, base: dict[str, Any], own: Weights, config: dict[str, Any]) -> Weights:
    """Both updates as one of scale 1; a layer that one of them lacks gets zeros there, since all ranks are the same."""
    parts = ((below, base["lora_parameters"]), (own, config["lora_parameters"]))
    ranks = [parameters["rank"] for _, parameters in parts]
    whole: Weights = {}
    for path in sorted({*paths(below), *paths(own)}):
        some = below if f"{path}.lora_a" in below else own
        switch = some[f"{path}.lora_a"].ndim == 3
        # Linear: A (in, r), B (r, out). Switch: A (experts, r, in), B (experts, out, r).
        axes = {"lora_a": 1 if switch else -1, "lora_b": -1 if switch else 0}
        for name, axis in axes.items():
            arrays = []
            for (weights, parameters), rank in zip(parts, ranks, strict=True):
                array = weights.get(f"{path}.{name}")
                if array is None:
                    shape = list(some[f"{path}.{name}"].shape)
                    shape[axis] = rank
                    array = mx.zeros(shape)
                factor = parameters["scale"] if name == "lora_b" else 1.0
                arrays.append(factor * array.astype(mx.float32))
            whole[f"{path}.{name}"] = mx.concatenate(arrays, axis=axis)
    return whole


def joined_config(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``adapter_config.json`` of both as one."""
    parameters = [config["lora_parameters"] for config in (base, own)]
    rank = sum(one["rank"] for one in parameters)
    keys = list(dict.fromkeys(key for one in parameters for key in one["keys"]))
    return own | {
        "num_layers": max(base["num_layers"], own["num_layers"]),
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": keys},
        "mlxforge": {"kind": "lora", "alpha": float(rank)},
    }


def _merge(model: nn.Module, config: dict[str, Any], seed: int, below: Path) -> Publish:
    """The run below becomes part of the weights; the published adapter holds every changed weight whole."""
    kind = config["fine_tune_type"]
    if kind == "dora":
        raise ConfigError("dora cannot be trained on top of a run", where="lora.kind", fix="use lora, or --from-run NAME")
    if any("scales" in module for module in model.modules()):
        if kind == "full":
            raise ConfigError("full training needs a base that is not quantized", where="lora.kind", fix="use lora.kind=lora")
        what = "an adapter that is no plain LoRA cannot lie under another one where the base is quantized"
        raise ConfigError(what, where="model", fix="go on with that adapter itself: --from-run NAME")
    before = dict(tree_flatten(model.parameters()))
    apply_adapter(model, below)
    fused = [(path, module.fuse()) for path, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(tree_unflatten(fused))
    after = dict(tree_flatten(model.parameters()))
    changed = {name: array for name, array in after.items() if array is not before.get(name)}
    make_trainable(model, config, seed)

    def publish(own: Weights, own_config: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
        whole = own_config | {"fine_tune_type": "full", "num_layers": len(model.layers)}
        if own_config["fine_tune_type"] == "full":
            return changed | own, whole
        factor = own_config["lora_parameters"]["scale"]
        deltas = {path: (own[f"{path}.lora_a"], factor * own[f"{path}.lora_b"]) for path in paths(own)}
        dense = {
            path: after[f"{path}.weight"] + update(a, b).astype(after[f"{path}.weight"].dtype)
            for path, (a, b) in deltas.items()
        }
        return changed | {f"{path}.weight": array for path, array in dense.items()}, whole

    return publish


def update(a: mx.array, b: mx.array) -> mx.array:
    """What an update adds to a weight (out, in), or (experts, out, in)."""
    return b @ a if a.ndim == 3 else (a @ b).T
