"""A model quantized as MLX reads it, one layer at a time, and how far it is from what it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxforge.core.errors import ConfigError, ModelError
from mlxforge.core.events import Emit, Progress, ignore
from mlxforge.models.load import explain, quiet_import
from mlxforge.models.stack import module_at

# Mode -> bits and group sizes that MLX has, the usual ones first.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}
# What both models read, for the distance between them.
TEXTS = (
    "The mill stands by the river. In spring the water rises to the second step, and the miller moves his sacks upstairs.",
    "Question: how many days are there in 1984, and why?\nAnswer: 366, since it can be divided by 4 and not by 100.",
    'def area(width: float, height: float) -> float:\n    """Of a rectangle."""\n    return width * height\n',
)


@dataclass(frozen=True)
class Packing:
    """How a layer is packed: bits a weight, weights that share a scale, and MLX's mode."""

    bits: int
    group_size: int
    mode: str = "affine"

    def __str__(self) -> str:
        return f"{self.bits} bits, groups of {self.group_size} ({self.mode})"


@dataclass
class Packed:
    """What became of a model.

    Attributes:
        layers: packed layers.
        kept: layers whose rows do not divide by the group size, which stay as they are.
        others: layers that the model's own code keeps whole, such as routers.
        error: mean absolute change of the packed weights over their mean absolute value.
        before, after: bytes of all weights; ``weights`` is their number.
        settings: what config.json says of it, with what single layers have of their own.
    """

    settings: dict[str, Any]
    before: int
    weights: int
    after: int = 0
    layers: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    error: float = 0.0

    @property
    def bits_per_weight(self) -> float:
        """Of the whole model, scales included."""
        return 8 * self.after / self.weights


def packing(bits: int | None, group_size: int | None, mode: str) -> Packing:
    """The usual packing of a mode with what is asked for.

    Raises:
        ConfigError: MLX has no such mode, bits or group size.
    """
    if mode not in MODES:
        raise ConfigError(f"no mode '{mode}'", where="--q-mode", fix=f"one of {', '.join(MODES)}")
    chosen = []
    for flag, given, known in zip(("--q-bits", "--q-group-size"), (bits, group_size), MODES[mode], strict=True):
        if given is not None and given not in known:
            fix = f"one of {', '.join(map(str, sorted(known)))}"
            raise ConfigError(f"{given} is not to be had in mode {mode}", where=flag, fix=fix)
        chosen.append(known[0] if given is None else given)
    return Packing(chosen[0], chosen[1], mode)


def open_floats(folder: Path) -> Any:
    """The model of a folder, unpacked, its weights not yet read.

    Raises:
        ModelError: mlx-lm cannot build it.
    """
    with quiet_import():
        import mlx_lm.utils
    try:
        model, config = mlx_lm.utils.load_model(folder, lazy=True)
    except Exception as error:  # a foreign config fails in as many ways as there are model classes
        what, where = explain(error)
        raise ModelError(what, where=str(folder / where)) from error
    return mlx_lm.utils.dequantize_model(model) if "quantization" in config else model


def pack(model: Any, chosen: Packing, emit: Emit = ignore) -> Packed:
    """Packs a model in place; a layer's floats are let go before the next one's are read.

    Raises:
        ConfigError: no layer takes this group size.
    """
    usual = {"group_size": chosen.group_size, "bits": chosen.bits, "mode": chosen.mode}
    own: Callable[[str, Any], bool | dict[str, Any]] | None = getattr(model, "quant_predicate", None)
    before, weights = sizes(model)
    found = Packed(dict(usual), before, weights)
    changed = size = 0.0
    paths = sorted(path for path, layer in model.named_modules() if hasattr(layer, "to_quantized"))
    for number, path in enumerate(paths):
        layer = module_at(model, path)
        wanted = own(path, layer) if own else True
        options = wanted if isinstance(wanted, dict) else usual
        if not wanted:
            found.others.append(path)
        elif layer.weight.shape[-1] % options["group_size"]:
            found.kept.append(path)
        else:
            if isinstance(wanted, dict):
                found.settings[path] = wanted
            small = layer.to_quantized(**options)
            one, all_of_it = _change(layer.weight, small)
            changed, size = changed + one, size + all_of_it
            model.update_modules(tree_unflatten([(path, small)]))
            found.layers.append(path)
        emit(Progress(task="packing", done=number + 1, total=len(paths), unit="layers"))
    if not found.layers:
        rows = f"no layer's rows divide by {chosen.group_size}"
        raise ConfigError(rows, where="--q-group-size", fix="a smaller one, or mode mxfp4 or nvfp4")
    found.error = changed / size if size else 0.0
    found.after = sizes(model)[0]
    return found


def sizes(model: Any) -> tuple[int, int]:
    """The bytes of a model's weights, and their number."""
    arrays = [array for _, array in tree_flatten(model.parameters())]
    return sum(array.nbytes for array in arrays), sum(array.size for array in arrays)


def _change(weight: mx.array, small: nn.Module) -> tuple[float, float]:
    """Sums of the absolute change and of the absolute values of one layer's weights."""
    parts = (small.weight, small.scales, small.get("biases"))
    again = mx.dequantize(*parts, group_size=small.group_size, bits=small.bits, mode=small.mode).astype(mx.float32)
    exact = weight.astype(mx.float32)
    sums = mx.stack([mx.abs(again - exact).sum(), mx.abs(exact).sum()])
    mx.eval(sums, small.parameters())
    return float(sums[0].item()), float(sums[1].item())


def logprobs(model: Any, texts: list[list[int]]) -> list[mx.array]:
    """Log-probabilities of every next token, (T, V) float32 a text."""
    found = []
    for ids in texts:
        logits = model(mx.array([ids]))[0].astype(mx.float32)
        found.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.eval(found[-1])
    return found


def distance(exact: list[mx.array], packed: list[mx.array], texts: list[list[int]]) -> dict[str, float]:
    """Mean KL divergence a token in nats, and both models' perplexity on the texts."""
    tokens = sum(len(ids) - 1 for ids in texts)
    apart = sum(float((mx.exp(p) * (p - q)).sum(axis=-1)[:-1].sum().item()) for p, q in zip(exact, packed, strict=True))

    def perplexity(found: list[mx.array]) -> float:
        said = [mx.take_along_axis(p[:-1], mx.array(ids[1:])[:, None], axis=-1) for p, ids in zip(found, texts, strict=True)]
        return float(mx.exp(-sum(one.sum() for one in said) / tokens).item())

    return {"kl": apart / tokens, "perplexity_before": perplexity(exact), "perplexity_after": perplexity(packed)}


def fits(size: int) -> bool:
    """Whether a model of so many bytes may be held beside all else: in half of the machine's memory."""
    return size < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
