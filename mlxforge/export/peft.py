"""An adapter as PEFT reads it: ``adapter_model.safetensors`` and ``adapter_config.json``, in transformers' names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlxforge.core.errors import ModelError
from mlxforge.core.files import array_errors
from mlxforge.export.placement import Placement
from mlxforge.models.adapters import ADAPTER_CONFIG, PEFT_WEIGHTS
from mlxforge.models.lora import read_adapter
from mlxforge.models.peft import EMBEDDINGS, OTHERWISE, PREFIX, WRAPPED, hf_module, is_tied
from mlxforge.models.stack import joined, joined_config, module_at

Weights = dict[str, mx.array]
SWITCHES = (SwitchLinear, QuantizedSwitchLinear)
# mlx-lm's part -> PEFT's, of a linear layer and of an embedding.
LINEAR = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
EMBEDDING = {"lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B"}
# Routers are linear layers in mlx-lm and bare weights in transformers.
ROUTER = re.compile(r"\.(gate|router|router\.layer)$")
INSTEAD = "mlxforge fuse, or export gguf; or train with lora.targets that leave these layers out"


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter in PEFT's words.

    Attributes:
        weights: as they are written.
        config: adapter_config.json.
        kind: ``lora``, ``rslora`` or ``dora``.
    """

    weights: Weights
    config: dict[str, Any]
    kind: str

    def write(self, folder: Path) -> None:
        """Writes both files."""
        with array_errors(folder):
            mx.save_safetensors(str(folder / PEFT_WEIGHTS), self.weights, {"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(self.config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def as_peft(base: Path, adapters: Sequence[Path], name: str) -> PeftAdapter:
    """Adapter folders of mlx-lm's or PEFT's over the model folder ``base``, which PEFT is to know as ``name``, as one.

    Raises:
        ModelError: the adapter is of another base, or PEFT has no words for it.
    """
    placement = Placement(base)
    adapter = adapters[-1]
    weights, settings = _as_one(placement, adapters)
    model_type = _model_type(base)
    if reason := OTHERWISE.get(model_type):
        raise ModelError(
            f"PEFT has no words for this adapter: {reason}", where=str(adapter), fix="mlxforge fuse, or export gguf"
        )
    modules: dict[str, str] = {}
    written: Weights = {}
    for path in sorted({name.rpartition(".")[0] for name in weights}):
        module = _module(placement, path, adapter)
        modules[path] = hf_module(path, model_type)
        parts = EMBEDDING if isinstance(module, EMBEDDINGS) else LINEAR
        for name_here, array in _parts(weights, path):
            _check_shape(module, path, name_here, array, settings, adapter)
            whole = array.T if array.ndim == 2 else array
            written[f"{PREFIX}{modules[path]}.{parts[name_here]}"] = mx.contiguous(whole.astype(mx.float32))
    _check_parts(weights, modules, settings["fine_tune_type"] == "dora", adapter)
    kind, alpha = _scaling(settings)
    others = [hf_module(path, model_type) for path, module in placement.model.named_modules() if "weight" in module]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "r": settings["lora_parameters"]["rank"],
        "lora_alpha": alpha,
        "lora_dropout": float(settings["lora_parameters"].get("dropout") or 0.0),
        "use_rslora": kind == "rslora",
        "use_dora": kind == "dora",
        **targets(set(modules.values()), {*others, *_beside(placement)}, exact=model_type in WRAPPED),
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }
    return PeftAdapter(written, config, kind)


def _as_one(placement: Placement, adapters: Sequence[Path]) -> tuple[Weights, dict[str, Any]]:
    """Low-rank updates side by side are one of the ranks' sum."""
    read = [read_adapter(adapter, placement.model, placement.names) for adapter in adapters]
    for adapter, (_, settings) in zip(adapters, read, strict=True):
        kind = settings["fine_tune_type"]
        if kind not in ("lora", "dora"):
            what = f"an adapter of type '{kind}' holds whole weights, which PEFT does not read"
            raise ModelError(what, where=str(adapter), fix="mlxforge fuse, or export gguf")
        if kind == "dora" and len(adapters) > 1:
            raise ModelError("dora and another adapter are not one adapter", where=str(adapter), fix="mlxforge fuse")
    weights, settings = read[0]
    for own, config in read[1:]:
        weights, settings = joined(weights, settings, own, config), joined_config(settings, config)
    return weights, settings


def targets(chosen: set[str], known: Iterable[str], exact: bool = False) -> dict[str, Any]:
    """``target_modules``, ``layers_to_transform`` and ``layers_pattern`` that hit exactly the chosen modules.

    By the last part of the names where that hits no other module of the model, else (or where ``exact``) by whole names.
    """
    whole = {"target_modules": sorted(chosen), "layers_to_transform": None, "layers_pattern": None}
    if exact:
        return whole
    leaves = sorted({name.rpartition(".")[2] for name in chosen})
    layers = {int(found[1]) for name in chosen if (found := re.search(r"(?:^|\.)layers\.(\d+)\.", name))}
    outside = any(not re.search(r"(?:^|\.)layers\.\d+\.", name) for name in chosen)
    hit = {name for name in {*known, *chosen} if name.rpartition(".")[2] in leaves}
    if hit == chosen:
        return {"target_modules": leaves, "layers_to_transform": None, "layers_pattern": None}
    inside = {name for name in hit if (found := re.search(r"^[^\d]*?layers\.(\d+)\.", name)) and int(found[1]) in layers}
    if inside == chosen and not outside:
        return {"target_modules": leaves, "layers_to_transform": sorted(layers), "layers_pattern": "layers"}
    return whole


def _model_type(base: Path) -> str:
    return str(json.loads((base / "config.json").read_bytes()).get("model_type"))


def _beside(placement: Placement) -> list[str]:
    """Modules of the base that mlx-lm leaves out: a picture model's own, which PEFT would see."""
    used = {id(array) for array in placement.names.values()}
    left = (name for name, array in placement.arrays.items() if id(array) not in used)
    return [name.removesuffix(".weight") for name in left if name.endswith(".weight")]


def _module(placement: Placement, path: str, adapter: Path) -> nn.Module:
    """The module that an update changes; refused where PEFT cannot change it."""
    try:
        module: nn.Module = module_at(placement.model, path)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError):
        what = f"the adapter is of another base: {path} is not in the base"
        raise ModelError(what, where=str(adapter), fix="use the base it was trained on") from None
    problem = ""
    if isinstance(module, SWITCHES):
        problem = "holds all experts in one tensor, which transformers keeps as a bare weight"
    elif ROUTER.search(path):
        problem = "is a router, which transformers keeps as a bare weight"
    elif isinstance(module, EMBEDDINGS) and is_tied(placement.model):
        problem = "is the output head too, and PEFT would change only one of them"
    elif not isinstance(module, (nn.Linear, nn.Embedding)):
        problem = f"is of type {type(module).__name__}"
    if problem:
        raise ModelError(f"PEFT has no words for this adapter: {path} {problem}", where=str(adapter), fix=INSTEAD)
    return module


def _parts(weights: Mapping[str, mx.array], path: str) -> list[tuple[str, mx.array]]:
    return [(part, weights[f"{path}.{part}"]) for part in LINEAR if f"{path}.{part}" in weights]


def _check_shape(module: nn.Module, path: str, part: str, array: mx.array, settings: Mapping[str, Any], adapter: Path) -> None:
    out, width = module.weight.shape
    if isinstance(module, EMBEDDINGS):
        out, width = width, out
    rank = settings["lora_parameters"]["rank"]
    wanted = {"lora_a": (width, rank), "lora_b": (rank, out), "m": (out,)}[part]
    if tuple(array.shape) != wanted:
        what = f"the adapter is of another base: {path}.{part} is {tuple(array.shape)} where the base needs {wanted}"
        raise ModelError(what, where=str(adapter), fix="use the base it was trained on")


def _check_parts(weights: Mapping[str, mx.array], modules: Mapping[str, str], dora: bool, adapter: Path) -> None:
    needed = {"lora_a", "lora_b", "m"} if dora else {"lora_a", "lora_b"}
    wanted = {f"{path}.{part}" for path in modules for part in needed}
    if wrong := sorted(wanted ^ set(weights)):
        raise ModelError(f"'{wrong[0]}' is {'missing' if wrong[0] in wanted else 'no part of it'}", where=str(adapter))
    if not modules:
        raise ModelError("the adapter is empty", where=str(adapter))


def _scaling(settings: Mapping[str, Any]) -> tuple[str, float]:
    """(kind, alpha) such that PEFT's factor is the adapter's own scale."""
    parameters = settings["lora_parameters"]
    rank, scale = parameters["rank"], float(parameters["scale"])
    dora = settings["fine_tune_type"] == "dora"
    rslora = not dora and (settings.get("mlxforge") or {}).get("kind") == "rslora"
    alpha = scale * (math.sqrt(rank) if rslora else rank)
    near = round(alpha)
    return ("dora" if dora else "rslora" if rslora else "lora"), near if math.isclose(alpha, near, rel_tol=1e-9) else alpha
