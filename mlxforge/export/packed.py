"""A base that MLX packed into few bits, read as floats, and packed again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxforge.core.errors import ModelError
from mlxforge.export.placement import Placement
from mlxforge.export.source import NUMPY, Entry, FolderSource, Source, computed, narrowed

PARTS = ("weight", "scales", "biases")
QUANTIZED = ("quantization", "quantization_config")
FLOATS = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}


def quantization(config: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """How MLX packed a model, by its config; None where it is not packed.

    Raises:
        ModelError: it is packed in another way (GPTQ, AWQ, FP8, …).
    """
    levels = [level for level in (config, config.get("text_config")) if isinstance(level, dict)]
    own = next((level["quantization"] for level in levels if isinstance(level.get("quantization"), dict)), None)
    if own is not None:
        return own
    foreign = next((level[QUANTIZED[1]] for level in levels if level.get(QUANTIZED[1])), None)
    if foreign is None and (path / "hf_quant_config.json").is_file():
        foreign = {"quant_method": "modelopt"}
    if foreign is None:
        return None
    method = foreign.get("quant_method", "unknown") if isinstance(foreign, dict) else "unknown"
    fix = "use its float copy, or one that mlx_lm.convert packed"
    raise ModelError(f"packed as {method}, not in MLX's way", where=str(path / "config.json"), fix=fix)


def unpacked_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what says how weights are packed, nested ones too."""
    kept = {key: value for key, value in config.items() if key not in QUANTIZED}
    inner = kept.get("text_config")
    return kept | {"text_config": unpacked_config(inner)} if isinstance(inner, dict) else kept


class PackedSource:
    """A packed base as floats: of every packed layer one ``weight``, in the type of its scales; the rest as it lies.

    Values are computed in float32 from the scales as they are stored: those that training saw.
    """

    def __init__(self, stored: FolderSource, options: dict[str, Any], placement: Placement) -> None:
        self.stored, self.path = stored, stored.path
        self.config = unpacked_config(stored.config)
        names = stored.entries
        stems = [name.removesuffix(".scales") for name in names if name.endswith(".scales")]
        self.packing = {stem: packing(stem, stored, options, placement) for stem in stems if f"{stem}.weight" in names}
        self.entries: dict[str, Entry] = {}
        for name, entry in names.items():
            stem, _, part = name.rpartition(".")
            if stem not in self.packing or part not in PARTS:
                self.entries[name] = entry
            elif part == "weight":
                self.entries[name] = self._unpacked(stem)

    @property
    def homes(self) -> dict[str, Path]:
        """See :class:`Source`."""
        return self.stored.homes

    def _unpacked(self, stem: str) -> Entry:
        weight, scales = self.stored.entries[f"{stem}.weight"], self.stored.entries[f"{stem}.scales"]
        columns = scales.shape[-1] * self.packing[stem]["group_size"]
        dtype = scales.dtype if scales.dtype in NUMPY else "BF16"
        return Entry(weight.name, dtype, (*weight.shape[:-1], columns))

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See :class:`Source`."""
        stem = name.removesuffix(".weight")
        if stem not in self.packing or name == stem:
            return self.stored.rows(name, start, stop)
        parts = [self._part(f"{stem}.{part}", start, stop) for part in PARTS]
        whole = mx.dequantize(*parts, **self.packing[stem])
        return np.array(whole.astype(mx.float32))

    def _part(self, name: str, start: int, stop: int | None) -> mx.array | None:
        entry = self.stored.entries.get(name)
        if entry is None:
            return None
        read = self.stored.rows if entry.dtype in NUMPY else self.stored.block
        return mx.array(read(name, start, stop))

    def block(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See :class:`Source`."""
        read = self.rows if name.removesuffix(".weight") in self.packing else self.stored.block
        return read(name, start, stop)

    def chunks(self, name: str) -> Iterator[bytes]:
        """See :class:`Source`."""
        return computed(self, name) if name.removesuffix(".weight") in self.packing else self.stored.chunks(name)


def packing(stem: str, stored: FolderSource, options: dict[str, Any], placement: Placement) -> dict[str, Any]:
    """``group_size``, ``bits`` and ``mode`` of one layer: its own entry in the config, else what the shapes say.

    Raises:
        ModelError: the shapes fit no packing.
    """
    chosen = options[stem] if isinstance(options.get(stem), dict) else options
    weight, scales = (stored.entries[f"{stem}.{part}"].shape[-1] for part in PARTS[:2])
    shape = placement.shape(f"{stem}.weight")
    size, bits = chosen.get("group_size", 0), chosen.get("bits", 0)
    if chosen is options and shape:
        # mlx-lm reads it so: the default of the config need not hold for a layer that it does not name.
        size, bits = shape[-1] // scales, weight * 32 // shape[-1]
    if not size or not bits or scales * size * bits != weight * 32 or (shape and scales * size != shape[-1]):
        what = f"'{stem}' is packed in a way that its config does not tell"
        raise ModelError(what, where=str(stored.path), fix="download the model again")
    return {"group_size": size, "bits": bits, "mode": chosen.get("mode", "affine")}


class Repacked:
    """A changed model whose base was packed, packed again as the base was: layers that did not change keep their bytes.

    Attributes:
        errors: of every layer that was packed again, the sums of the absolute error and of the absolute change.
    """

    def __init__(self, source: Source, base: PackedSource, changed: set[str]) -> None:
        self.source, self.base, self.changed = source, base, changed
        self.path, self.config, self.entries = base.path, base.stored.config, base.stored.entries
        self.homes = base.homes
        self.errors: dict[str, tuple[float, float]] = {}

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See :class:`Source`."""
        return self.source.rows(name, start, stop)

    def block(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See :class:`Source`."""
        return self.source.block(name, start, stop)

    def chunks(self, name: str) -> Iterator[bytes]:
        """See :class:`Source`."""
        weight = self._weight(name)
        if weight not in self.changed:
            yield from self.base.stored.chunks(name)
        elif weight.removesuffix(".weight") not in self.base.packing:
            yield from self.source.chunks(name)
        else:
            for start, stop in self.source.entries[weight].blocks:
                yield self._repacked(weight, name.rpartition(".")[2], start, stop)

    def _weight(self, name: str) -> str:
        stem, _, part = name.rpartition(".")
        return f"{stem}.weight" if stem in self.base.packing and part in PARTS else name

    def _repacked(self, weight: str, part: str, start: int, stop: int) -> bytes:
        stem, options = weight.removesuffix(".weight"), self.base.packing[weight.removesuffix(".weight")]
        after = self.source.rows(weight, start, stop)
        dtype = self.source.entries[weight].dtype
        parts = mx.quantize(mx.array(after).astype(FLOATS[dtype]), **options)
        if part == "weight":
            wide = [one.astype(mx.float32) if mx.issubdtype(one.dtype, mx.floating) else one for one in parts]
            error = np.abs(np.array(mx.dequantize(*wide, **options).astype(mx.float32)) - after).sum(dtype=np.float64)
            change = np.abs(after - self.base.rows(weight, start, stop)).sum(dtype=np.float64)
            before = self.errors.get(stem, (0.0, 0.0)) if start else (0.0, 0.0)
            self.errors[stem] = (before[0] + float(error), before[1] + float(change))
        array = parts[PARTS.index(part)]
        stored = self.base.stored.entries[f"{stem}.{part}"].dtype
        if mx.issubdtype(array.dtype, mx.floating):
            return narrowed(np.array(array.astype(mx.float32)), stored).tobytes()
        return np.array(array).tobytes()
