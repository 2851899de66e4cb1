"""Where mlx-lm's weights lie in a base: it renames, stacks, splits, transposes or shifts some tensors as it reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxforge.core.errors import ModelError
from mlxforge.models.check import weight_files
from mlxforge.models.load import explain, quiet_import
from mlxforge.models.stack import module_at

# How one tensor becomes mlx-lm's weight, and back.
OPS: dict[str, tuple[Callable[[mx.array], mx.array], Callable[[np.ndarray], np.ndarray]]] = {
    "shift": (lambda array: array + 1.0, lambda values: values - 1.0),
    "swap": (lambda array: array.swapaxes(1, 2), lambda values: np.ascontiguousarray(values.swapaxes(1, 2))),
}
AXES = {"shift": 1, "swap": 3}  # op -> axes of the tensors that it is for
COMPARED = 64 << 20  # numbers of a tensor up to which an op is proven on the values
# mlx-lm's prefix -> the one of the files.
PREFIXES = (
    ("", ""),
    ("language_model.model.", "model.language_model."),
    ("language_model.model.", "model."),
    ("language_model.", ""),
)
STACK = re.compile(r"(.+)\.switch_mlp\.(\w+)\.weight")
MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
HALVES = {"gate_proj": 0, "up_proj": 1}
FUSED = ("input_linear.weight", "experts.gate_up_proj")  # of granitemoe, of qwen3_5_moe


@dataclass(frozen=True)
class Piece:
    """A tensor of the base, or a part of it, as a part of one of mlx-lm's weights.

    Attributes:
        target: mlx-lm's name of the weight.
        row: the expert of the stacked weight that the tensor is, if it is one.
        part: (start, stop) of the tensor's second axis that the weight fills; None for all.
        op: how the tensor becomes the weight, of ``OPS``; empty where it is the weight.
    """

    target: str
    row: int | None = None
    part: tuple[int, int] | None = None
    op: str = ""


class Placement:
    """mlx-lm's view of a base; no weights are read, but for small ones that it changes.

    Attributes:
        model: mlx-lm's model without weights, not packed.
        arrays: the base's tensors by their own names, not read yet.
        names: the same under mlx-lm's names, as its ``sanitize`` gives them.

    Raises:
        ModelError: mlx-lm cannot build the model.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        with quiet_import():
            import mlx_lm.utils
        self.arrays: dict[str, mx.array] = {}
        for file in weight_files(base):
            self.arrays.update(mx.load(str(file)))
        try:
            config = mlx_lm.utils.load_config(base)
            kind, arguments = mlx_lm.utils._get_classes(config)
            self.model: nn.Module = kind(arguments.from_dict(json.loads(json.dumps(config))))
            sanitize: Any = getattr(self.model, "sanitize", dict)
            self.names: dict[str, mx.array] = sanitize(dict(self.arrays))
        except Exception as error:  # a foreign config fails in as many ways as there are model classes
            what, where = explain(error)
            raise ModelError(what, where=str(base / where), fix="take config and weights from one repository") from error
        self._own = {id(array): name for name, array in self.arrays.items()}
        self._handed = {self._own[id(array)] for array in self.names.values() if id(array) in self._own}

    def shape(self, target: str) -> tuple[int, ...] | None:
        """Shape of one of the model's weights, unpacked; None where it has none of this name."""
        path, _, last = target.rpartition(".")
        try:
            return tuple(module_at(self.model, path)[last].shape)
        except (KeyError, IndexError, AttributeError, TypeError, ValueError):
            return None

    def is_embedding(self, target: str) -> bool:
        """Whether a weight is a table of embeddings."""
        return isinstance(module_at(self.model, target.rpartition(".")[0]), nn.Embedding)

    def pieces(self, target: str) -> list[tuple[str, Piece]]:
        """The tensors of the base that make a weight, each with its part.

        Raises:
            ModelError: mlx-lm makes it in a way that is not known here.
        """
        origin = self._own.get(id(self.names[target]))
        if origin is not None:
            return [(origin, Piece(target))]
        for rule in (self._experts, self._half, self._changed):
            if found := rule(target):
                return found
        what = f"'{target}' cannot be written back: mlx-lm makes it of other tensors as it reads them"
        raise ModelError(
            what, where=str(self.base), fix="train without this layer (lora.targets), or convert the base with mlx_lm"
        )

    def _originals(self, target: str) -> Iterator[str]:
        return (theirs + target.removeprefix(own) for own, theirs in PREFIXES if target.startswith(own))

    def _is(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor can be a part of another weight: what mlx-lm hands on as it is cannot."""
        if name not in self.arrays or name in self._handed:
            return False
        packed = f"{name.removesuffix('.weight')}.scales" in self.arrays
        return packed or tuple(self.arrays[name].shape) == shape

    def _experts(self, target: str) -> list[tuple[str, Piece]]:
        """A tensor an expert, ``experts.0.up_proj.weight`` or Mixtral's ``experts.0.w3.weight``."""
        shape = self.shape(target) or ()
        for name in self._originals(target):
            if not (found := STACK.fullmatch(name)):
                continue
            for word in (found[2], MIXTRAL.get(found[2], found[2])):
                names = [f"{found[1]}.experts.{row}.{word}.weight" for row in range(shape[0])]
                if all(self._is(one, shape[1:]) for one in names):
                    return [(one, Piece(target, row)) for row, one in enumerate(names)]
        return []

    def _half(self, target: str) -> list[tuple[str, Piece]]:
        """One tensor of all experts' gates and, after them, ups."""
        shape = self.shape(target) or ()
        for name in self._originals(target):
            found = STACK.fullmatch(name)
            if not found or found[2] not in HALVES or len(shape) != 3:
                continue
            for whole in (f"{found[1]}.{one}" for one in FUSED):
                if self._is(whole, (shape[0], 2 * shape[1], shape[2])):
                    first = HALVES[found[2]] * shape[1]
                    return [(whole, Piece(target, part=(first, first + shape[1])))]
        return []

    def _changed(self, target: str) -> list[tuple[str, Piece]]:
        """A tensor that is shifted or transposed: which, its values tell."""
        value = self.names[target]
        for name in self._originals(target):
            before = self.arrays.get(name)
            if before is None or value.size != before.size or value.size > COMPARED:
                continue
            for op, (forward, _) in OPS.items():
                if before.ndim == AXES[op] and mx.array_equal(forward(before), value).item():
                    return [(name, Piece(target, op=op))]
        return []
