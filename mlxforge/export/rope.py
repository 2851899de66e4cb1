"""Rope of a config.json, old style (rope_theta, rope_scaling) or new (rope_parameters), as GGUF says it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mlxforge.core.errors import ModelError
from mlxforge.export.architectures import Architecture, Config, rotated


def rope(row: Architecture, config: Config) -> Config:
    """The rope's parameters: rope_type, rope_theta and what the type needs.

    Raises:
        ModelError: llama.cpp's architecture has no such scaling.
    """
    new: dict[str, Any] = config.get("rope_parameters") or {}
    found: dict[str, Any] = {**(config.get("rope_scaling") or {}), **new.get("full_attention", new)}
    kind = str(found.get("rope_type") or found.get("type") or "default")
    kind = "default" if kind == "mrope" else kind
    if kind not in row.scalings:
        what = f"llama.cpp's {row.name} has no rope scaling of type '{kind}' (it has {', '.join(row.scalings)})"
        raise ModelError(what, where=config.where, fix="use 'mlxforge export mlx'")
    if kind == "yarn" and (found.get("beta_fast") or 32, found.get("beta_slow") or 1) != (32, 1):
        # Other values in the file change nothing: the log-probabilities stay the same to the bit (measured in b11549).
        what = "llama.cpp takes YaRN with beta_fast 32 and beta_slow 1 only"
        raise ModelError(what, where=config.where, fix="use 'mlxforge export mlx'")
    theta = found.get("rope_theta") or config.get("rope_theta") or 10000.0
    return Config({**found, "rope_type": kind, "rope_theta": float(theta)}, f"{config.where}: rope_scaling")


def rope_keys(row: Architecture, config: Config) -> dict[str, Any]:
    """The rope's hyperparameters."""
    found = rope(row, config)
    keys: dict[str, Any] = {"rope.dimension_count": rotated(config), "rope.freq_base": found["rope_theta"]}
    return keys | SCALINGS[found["rope_type"]](found, config)


def linear(found: Config, _: Config) -> dict[str, Any]:
    """Positions are divided by the factor."""
    return {"rope.scaling.type": "linear", "rope.scaling.factor": float(found["factor"])}


def yarn(found: Config, _: Config) -> dict[str, Any]:
    """YaRN (arXiv 2309.00071). llama.cpp multiplies its own 1 + 0.1 ln(factor) by ``attn_factor``."""
    factor = float(found["factor"])
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(found.get("original_max_position_embeddings") or 4096),
    }
    wanted, own = magnitude(found, factor), scale(factor, 1.0)
    return keys if wanted == own else keys | {"rope.scaling.attn_factor": wanted / own}


def scale(factor: float, weight: float) -> float:
    """YaRN's temperature for a factor."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def magnitude(found: Config, factor: float) -> float:
    """What queries and keys are multiplied by, as mlx-lm has it."""
    return scale(factor, found.get("mscale", 1)) / scale(factor, found.get("mscale_all_dim", 0))


def longrope(found: Config, config: Config) -> dict[str, Any]:
    """Phi-3's factors are tensors; the scale of queries and keys is a key."""
    original = original_length(found, config)
    growth = config["max_position_embeddings"] / original
    factor = math.sqrt(1 + math.log(growth) / math.log(original)) if growth > 1 else 1.0
    return {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(found.get("long_mscale") or factor),
    }


def original_length(found: Config, config: Config) -> int:
    """The context before it was stretched."""
    return int(found.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or 4096)


def alpha(found: Config, config: Config) -> dict[str, Any]:
    """Hunyuan's 'dynamic' rope is a larger base, whatever the length."""
    wide = config["head_dim"]
    return {"rope.freq_base": found["rope_theta"] * float(found["alpha"]) ** (wide / (wide - 2))}


SCALINGS: dict[str, Callable[[Config, Config], dict[str, Any]]] = {
    "default": lambda *_: {},
    "llama3": lambda *_: {},
    "linear": linear,
    "yarn": yarn,
    "longrope": longrope,
    "su": longrope,
    "dynamic": alpha,
}


def rope_tensors(row: Architecture, config: Config) -> list[tuple[str, tuple[float, ...]]]:
    """(name, values) of the rope's factors that a file holds as tensors."""
    found = rope(row, config)
    if found["rope_type"] == "llama3":
        return [("rope_freqs.weight", llama3_factors(found, rotated(config)))]
    if found["rope_type"] in ("longrope", "su"):
        # llama.cpp takes the short factors below the original context, mlx-lm the long ones always: these were trained with.
        values = factors(found, "long_factor", rotated(config))
        return [("rope_factors_long.weight", values), ("rope_factors_short.weight", values)]
    return []


def factors(found: Config, key: str, wide: int) -> tuple[float, ...]:
    """A list of factors, one for every rotated pair."""
    values = found.get(key) or []
    if len(values) != wide // 2:
        raise ModelError(f"{key} has {len(values)} numbers", where=found.where, fix=f"it needs {wide // 2}")
    return tuple(float(value) for value in values)


def llama3_factors(found: Config, wide: int) -> tuple[float, ...]:
    """What each frequency is divided by: nothing where its wave is short, the factor where it is long, a blend between."""
    length, factor = float(found.get("original_max_position_embeddings", 8192)), float(found["factor"])
    low, high = float(found.get("low_freq_factor", 1)), float(found.get("high_freq_factor", 4))
    divisors = []
    for i in range(0, wide, 2):
        turns = length / (2 * math.pi * found["rope_theta"] ** (i / wide))  # in the original context
        part = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - part) / factor + part))
    return tuple(divisors)
