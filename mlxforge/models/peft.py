"""Adapters in PEFT's format: what their modules are called here and there, and their weights as mlx-lm's.

PEFT writes a layer's update as ``scale * B A`` with ``lora_A`` (r, in) and ``lora_B`` (out, r), scale alpha / r, or
alpha / sqrt(r) with rsLoRA; mlx-lm has the transposes, ``lora_a`` (in, r) and ``lora_b`` (r, out), and one rank and scale for
all layers. So what differs from layer to layer becomes part of ``lora_b``, and a layer without an update gets one of zeros.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxforge.core.errors import ModelError
from mlxforge.models.adapters import ADAPTER_CONFIG, adapter_file, adapter_settings

PREFIX = "base_model.model."
# PEFT's name of a part -> mlx-lm's. DoRA's magnitude had a '.weight' for some versions.
PARTS = {
    "lora_A.weight": "lora_a",
    "lora_B.weight": "lora_b",
    "lora_embedding_A": "lora_a",
    "lora_embedding_B": "lora_b",
    "lora_magnitude_vector": "m",
    "lora_magnitude_vector.weight": "m",
}
# Where the language model's blocks lie in transformers' classes, the alone and the wrapped ones.
TEXT = ("base_model.model.", "model.language_model.", "language_model.model.", "language_model.", "model.", "")
# model_type -> where they lie in the class that AutoModelForCausalLM (mistral3: AutoModelForImageTextToText) makes.
WRAPPED = {"gemma3": "model.language_model.", "mistral3": "model.language_model."}
# model_type -> a layer's name in mlx-lm -> in transformers, where they differ.
RENAMED = {
    "lfm2_moe": {
        "feed_forward.gate_proj": "feed_forward.w1",
        "feed_forward.down_proj": "feed_forward.w2",
        "feed_forward.up_proj": "feed_forward.w3",
    }
}
# model_type -> why an update of mlx-lm's weights is none of transformers'.
OTHERWISE = {"falcon_h1": "mlx-lm multiplies falcon_h1's factors into its weights, transformers does not"}
EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)
LINEARS = (nn.Linear, nn.QuantizedLinear)

# Keys of PEFT's config that this reading takes into account, or that say nothing of what the adapter computes.
READ = {"peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
READ |= {"base_model_name_or_path", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
IDLE = {"task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout", "megatron_core"}
IDLE |= {"qalora_group_size", "loftq_config", "eva_config", "runtime_config", "ensure_weight_tying"}
# How the matrices began; all others change the base's weights too.
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
AS_LORA = "train with plain LoRA, or merge it with PEFT: model.merge_and_unload()"


def read_peft(
    directory: Path, model: nn.Module, own: Mapping[str, mx.array] | None = None
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """The weights and the config of a PEFT adapter as :func:`mlxforge.models.lora.read_adapter` gives those of mlx-lm.

    ``model`` is the bare base; it tells the names and shapes, and stays as it is. ``own`` are its weights, where it does not
    hold them itself. The config is ``sparse``: layers that it covers and the weights lack are not changed.

    Raises:
        ModelError: the adapter is damaged, of another base, or does what mlx-lm's LoRA and DoRA cannot.
    """
    settings = checked_settings(directory)
    if reason := OTHERWISE.get(getattr(model, "model_type", "")):
        raise ModelError(f"PEFT's adapters cannot be used over this base: {reason}", where=str(directory), fix=AS_LORA)
    own = dict(tree_flatten(model.parameters())) if own is None else own
    layers, modules = _layers(directory, model, own, bool(settings.get("use_dora")))
    ranks = {path: int(parts["lora_a"].shape[1]) for path, parts in layers.items()}
    scales = {path: _scale(settings, modules[path], rank, directory) for path, rank in ranks.items()}
    rank = max(ranks.values())
    same = len(set(scales.values())) == 1
    weights: dict[str, mx.array] = {}
    for path, parts in layers.items():
        a, b = parts["lora_a"], parts["lora_b"] * (1.0 if same else scales[path])
        wider = rank - ranks[path]
        weights[f"{path}.lora_a"] = mx.pad(a, [(0, 0), (0, wider)])
        weights[f"{path}.lora_b"] = mx.pad(b, [(0, wider), (0, 0)])
        if "m" in parts:
            weights[f"{path}.m"] = parts["m"]
    scale = next(iter(scales.values())) if same else 1.0
    return weights, _config(settings, model, sorted(layers), rank, scale)


def checked_settings(directory: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json.

    Raises:
        ModelError: it asks for what cannot be done here; the key is named.
    """
    settings = adapter_settings(directory)
    where = f"{directory / ADAPTER_CONFIG}"
    if settings["peft_type"] != "LORA":
        raise ModelError(f"peft_type is {settings['peft_type']}, only LORA can be read", where=where, fix=AS_LORA)
    if settings.get("bias", "none") != "none":
        raise ModelError(f"bias is '{settings['bias']}': trained biases cannot be read", where=where, fix=AS_LORA)
    start = settings.get("init_lora_weights")
    if start not in STARTS:
        fix = "save it with path_initial_model_for_weight_conversion, which makes it plain LoRA"
        raise ModelError(f"init_lora_weights is '{start}', which changes the base's weights", where=where, fix=fix)
    for key, value in settings.items():
        if key not in READ | IDLE and value:
            raise ModelError(f"{key} is set, which cannot be read here", where=where, fix=AS_LORA)
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (settings.get(key) or {}).items():
            if not _is_pattern(pattern) or not isinstance(value, (int, float)) or value <= 0:
                raise ModelError(f"{key}: {pattern!r}: {value!r} is no pattern with a positive number", where=where)
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), (int, float)) or settings[key] <= 0:
            raise ModelError(f"{key} is {settings.get(key)!r}, not a positive number", where=where)
    return settings


def blocks_path(model: nn.Module) -> str:
    """Where the model keeps its blocks: ``model.layers``, ``language_model.model.layers``."""
    return next(path.rpartition(".")[0] for path, module in model.named_modules() if module is model.layers[0])


def hf_module(path: str, model_type: str) -> str:
    """transformers' name of a module of mlx-lm's: ``model.layers.0.self_attn.q_proj``.

    A test compares these names with transformers' own for every family.
    """
    found = re.search(r"(?:^|\.)(layers\.(\d+)\.(.+)|embed_tokens)$", path)
    if found is None:
        return path.rpartition(".")[2]
    inner = RENAMED.get(model_type, {}).get(found[3] or "")
    tail = f"layers.{found[2]}.{inner}" if inner else found[1]
    return WRAPPED.get(model_type, "model.") + tail


def mlx_path(module: str, model: nn.Module) -> str:
    """The place in mlx-lm's model of a module of transformers'; it need not exist."""
    blocks = blocks_path(model)
    inside = re.fullmatch(rf"(?:{'|'.join(map(re.escape, TEXT))})layers\.(\d+)\.(.+)", module)
    if inside:
        renamed = {theirs: mine for mine, theirs in RENAMED.get(getattr(model, "model_type", ""), {}).items()}
        return f"{blocks}.{inside[1]}.{renamed.get(inside[2], inside[2])}"
    name = module.rpartition(".")[2]
    home, wrapper = blocks.rpartition(".")[0], blocks.rpartition(".")[0].rpartition(".")[0]
    outer = next((text for text in TEXT if module == f"{text}{name}"), None)
    if outer is None:
        return module
    return ".".join(part for part in ((wrapper if name == "lm_head" else home), name) if part)


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, (rows, dims) of an embedding, as if it were not packed."""
    rows, columns = module.weight.shape
    return rows, columns * 32 // module.bits if hasattr(module, "bits") else columns


def _layers(
    directory: Path, model: nn.Module, own: Mapping[str, mx.array], dora: bool
) -> tuple[dict[str, dict[str, mx.array]], dict[str, str]]:
    """Path in mlx-lm's model -> ``lora_a``, ``lora_b`` and ``m`` in float32, checked against the base; -> PEFT's module."""
    try:
        arrays = dict(mx.load(str(adapter_file(directory))))
    except RuntimeError as error:
        raise ModelError(f"not a whole adapter: {error}", where=str(directory), fix="copy it again") from error
    modules = dict(model.named_modules())
    layers: dict[str, dict[str, mx.array]] = {}
    names: dict[str, str] = {}
    wrong: list[str] = []
    for name, array in arrays.items():
        module, part = _split(name)
        if not part:
            _refuse_whole(name, array, own, model, directory)
            continue
        path = mlx_path(module, model)
        if not isinstance(modules.get(path), (*LINEARS, *EMBEDDINGS)):
            what = "are experts in one tensor here" if ".experts." in module else "is no layer of the base"
            wrong.append(f"{module} {what}")
        else:
            layers.setdefault(path, {})[part] = array.astype(mx.float32).T if array.ndim == 2 else array.astype(mx.float32)
            names[path] = module
    wrong += [problem for path, parts in layers.items() if (problem := _misfit(path, parts, modules[path], dora))]
    if wrong or not layers:
        what = f"the adapter is of another base: {wrong[0]} ({len(wrong)} such tensors)" if wrong else "the adapter is empty"
        raise ModelError(what, where=str(directory), fix="use the base it was trained on")
    _refuse_tied(layers, modules, model, directory)
    return layers, names


def _split(name: str) -> tuple[str, str]:
    """(module, mlx-lm's part) of a tensor's name; no part where it is no tensor of LoRA."""
    for theirs, mine in PARTS.items():
        if name.startswith(PREFIX) and name.endswith(f".{theirs}"):
            return name[len(PREFIX) : -len(theirs) - 1], mine
    return name.removeprefix(PREFIX), ""


def _refuse_whole(name: str, array: mx.array, own: Mapping[str, mx.array], model: nn.Module, directory: Path) -> None:
    """PEFT saves whole embeddings beside their updates: nothing is lost where they are the base's own."""
    module = name.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
    found = own.get(f"{mlx_path(module, model)}.weight")
    if found is not None and found.shape == array.shape and mx.array_equal(found.astype(array.dtype), array).item():
        return
    whole = "save it with save_embedding_layers=False if no token was added, else merge it with PEFT"
    fix = AS_LORA if ".lora_" in name else whole
    raise ModelError(f"'{name}' is no update of low rank and not the base's own", where=str(directory), fix=fix)


def _misfit(path: str, parts: Mapping[str, mx.array], module: nn.Module, dora: bool) -> str:
    needed = {"lora_a", "lora_b", "m"} if dora else {"lora_a", "lora_b"}
    if set(parts) != needed:
        return f"{path} has {', '.join(sorted(parts))} where {', '.join(sorted(needed))} are needed"
    if dora and isinstance(module, EMBEDDINGS):
        return f"{path} is an embedding, which mlx-lm's DoRA does not change"
    out, width = shape_of(module)
    first = out if isinstance(module, EMBEDDINGS) else width
    last = width if isinstance(module, EMBEDDINGS) else out
    a, b = parts["lora_a"].shape, parts["lora_b"].shape
    if a[1] != b[0]:
        return f"{path} has ranks {a[1]} and {b[0]}"
    if (a[0], b[1]) != (first, last):
        return f"{path} maps {a[0]} to {b[1]} where the base has {first} to {last}"
    m = parts.get("m")
    return f"{path} has a magnitude of {m.shape}" if m is not None and m.shape != (out,) else ""


def _refuse_tied(layers: Mapping[str, Any], modules: Mapping[str, Any], model: nn.Module, directory: Path) -> None:
    tables = [path for path in layers if isinstance(modules[path], EMBEDDINGS)]
    if tables and is_tied(model):
        what = f"{tables[0]} is the output head too, which PEFT leaves as it is and mlx-lm would change with it"
        raise ModelError(what, where=str(directory), fix=AS_LORA)


def is_tied(model: nn.Module) -> bool:
    """Whether the embedding is the output head too."""
    return not any(path.rpartition(".")[2] == "lm_head" for path, _ in model.named_modules())


def _scale(settings: Mapping[str, Any], module: str, rank: int, directory: Path) -> float:
    """The factor of one layer's update."""
    where = str(directory / ADAPTER_CONFIG)
    said = _patterned(settings.get("rank_pattern"), module, settings["r"])
    if said != rank:
        fix = "take config and weights of one adapter"
        raise ModelError(f"r of {module} is {said}, its tensors have rank {rank}", where=where, fix=fix)
    alpha = float(_patterned(settings.get("alpha_pattern"), module, settings["lora_alpha"]))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _patterned(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """As PEFT looks a layer up: the first pattern, a name or a regular expression, that the end of its name matches."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _config(settings: Mapping[str, Any], model: nn.Module, paths: list[str], rank: int, scale: float) -> dict[str, Any]:
    """``adapter_config.json`` as mlx-lm and mlxforge read it."""
    blocks, depth = blocks_path(model), len(model.layers)
    inside = {path: path[len(blocks) + 1 :].partition(".") for path in paths if path.startswith(f"{blocks}.")}
    first = min((int(index) for index, _, _ in inside.values()), default=depth - 1)
    keys = dict.fromkeys(inside[path][2] if path in inside else path for path in paths)
    dora = bool(settings.get("use_dora"))
    kind = "dora" if dora else "rslora" if settings.get("use_rslora") else "lora"
    alpha = scale * (math.sqrt(rank) if kind == "rslora" else rank)
    return {
        "model": settings.get("base_model_name_or_path"),
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": depth - first,
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": float(settings.get("lora_dropout") or 0.0),
            "keys": list(keys),
        },
        "mlxforge": {"kind": kind, "alpha": alpha},
        "sparse": True,
    }
