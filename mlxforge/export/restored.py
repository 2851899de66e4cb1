"""A GGUF file's tensors on their way back: how far they are from the source's, and the MLX model that they make."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlxforge.core.errors import ModelError
from mlxforge.core.events import Emit, Progress, ignore
from mlxforge.export.layout import Placed
from mlxforge.export.source import Source

# Relative RMS error of a tensor by its type: twice what normally distributed values give (measured: q8_0 0.0054, q6_k 0.018,
# q5_k 0.036, q4_k 0.072, q4_0 0.087), since real weights have longer tails (Student's t with 3 degrees: 1.3 to 1.55 times).
ERRORS = {
    **{"F32": 1e-6, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 0.011, "Q6_K": 0.036, "Q5_K": 0.072, "Q5_1": 0.076, "Q5_0": 0.086},
    **{"Q4_K": 0.143, "Q4_1": 0.157, "Q4_0": 0.172, "Q3_K": 0.3},
}
UNKNOWN = 0.01
SHARE = 0.5  # of the machine's memory that the MLX copy may take


@dataclass
class Compared:
    """A file's tensors beside the source's.

    Attributes:
        errors: relative RMS error by name.
        types: ggml type by name.
        strange: names that are in one of the two only, or have another shape.
        weights: the file's values under the source's names, as numpy arrays; empty where they were not wanted.
    """

    errors: dict[str, float] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """The tensor whose error is the largest part of its limit; empty where there is none."""
        return max(self.errors, key=lambda name: self.errors[name] / limit(self.types[name]), default="")

    @property
    def beyond(self) -> list[str]:
        """Names of tensors whose error is above their limit."""
        return [name for name, error in self.errors.items() if not error <= limit(self.types[name])]

    def counts(self) -> dict[str, int]:
        """Tensors by type, the most common first."""
        return dict(Counter(self.types.values()).most_common())


def limit(kind: str) -> float:
    """The relative RMS error that a tensor of a type may have."""
    return ERRORS.get(kind, UNKNOWN)


def compare(
    tensors: Sequence[Any], source: Source, placed: Sequence[Placed], *, keep: bool, half: bool = False, emit: Emit = ignore
) -> Compared:
    """Compares the tensors of a ``gguf.GGUFReader`` with the source, a block at a time.

    Args:
        keep: their values are wanted too, as ``weights``; with ``half`` matrices in float16.
    """
    from mlxforge.export.quantize import dequantized

    found = Compared()
    wanted = {tensor.name: tensor for tensor in placed}
    total = sum(int(tensor.n_elements) for tensor in tensors)
    done = 0
    for tensor in tensors:
        found.types[tensor.name] = tensor.tensor_type.name
        own = wanted.pop(tensor.name, None)
        if own is None or shape_of(tensor) != tuple(own.shape):
            what = f"{shape_of(tensor)}, not {tuple(own.shape)}" if own else "belongs nowhere"
            found.strange.append(f"{tensor.name} ({what})")
            continue
        values = dequantized(tensor)
        found.errors[tensor.name] = error_of(values, own, source)
        if keep:
            _keep(found.weights, own, values, half)
        done += values.size
        emit(Progress(task="comparing tensors", done=done, total=total))
    found.strange += [f"{name} (missing)" for name in wanted]
    return found


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Shape of a reader's tensor in numpy's order."""
    return tuple(int(size) for size in reversed(tensor.shape.tolist()))


def error_of(values: np.ndarray, placed: Placed, source: Source) -> float:
    """Relative RMS error of a file's values; 0 where both are all zeros, infinite where the source's alone are."""
    flat, place = values.reshape(-1), 0
    wrong = size = 0.0
    for block in placed.blocks(source):
        own = block.reshape(-1)
        off = flat[place : place + own.size] - own
        wrong += float(np.dot(off, off))
        size += float(np.dot(own, own))
        place += own.size
    if place != flat.size or not np.isfinite(wrong):
        return float("inf")
    return float(np.sqrt(wrong / size)) if size else 0.0 if not wrong else float("inf")


def _keep(weights: dict[str, np.ndarray], placed: Placed, values: np.ndarray, half: bool) -> None:
    placed.restore(values, weights)
    if half and values.ndim > 1:
        for name in placed.sources:
            weights[name] = weights[name].astype(np.float16)


def precision(placed: Sequence[Placed]) -> str | None:
    """``float32``, ``float16`` where that would take too much memory, or None where both would."""
    values = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in placed if tensor.sources)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * SHARE
    return next((name for name, size in (("float32", 4), ("float16", 2)) if values * size <= memory), None)


def stored(source: Source, placed: Sequence[Placed], half: bool = False) -> dict[str, np.ndarray]:
    """The source's own tensors in float32, matrices in float16 with ``half``: those that the file is made of."""
    names = dict.fromkeys(name for tensor in placed for name in tensor.sources)
    wide = {name: source.rows(name) for name in names}
    return {name: values.astype(np.float16) if half and values.ndim > 1 else values for name, values in wide.items()}


def model_of(source: Source, weights: Mapping[str, np.ndarray]) -> Any:
    """mlx-lm's model of a source with these weights, which have the source's names.

    Raises:
        ModelError: mlx-lm has no such model, or the weights are not its.
    """
    from mlxforge.core.blas import load_blas
    from mlxforge.models.load import explain, quiet_import

    load_blas()
    with quiet_import():
        import mlx.core as mx
        import mlx_lm.utils
    try:
        kind, arguments = mlx_lm.utils._get_classes(source.config)
        # from_dict may fill in what is missing: the source's config stays as it is.
        model = kind(arguments.from_dict(json.loads(json.dumps(source.config))))
        arrays = {name: mx.array(values) for name, values in weights.items()}
        if hasattr(model, "sanitize"):
            arrays = model.sanitize(arrays)
        model.load_weights(list(arrays.items()), strict=True)
    except ModelError:
        raise
    except Exception as error:  # a foreign config fails in as many ways as there are model classes
        what, where = explain(error)
        raise ModelError(what, where=str(source.path / where)) from error
    model.eval()
    return model


def log_probabilities(model: Any, ids: Sequence[int]) -> np.ndarray:
    """(T, V) natural log-probabilities of what follows each prefix of ``ids``, in float32."""
    import mlx.core as mx

    logits = model(mx.array([list(ids)]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
