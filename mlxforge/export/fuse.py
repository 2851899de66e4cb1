"""An adapter merged into the base's own tensors: original names and types, in float32, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxforge.core.errors import ModelError
from mlxforge.export.packed import PackedSource, quantization
from mlxforge.export.placement import OPS, Piece, Placement
from mlxforge.export.source import NUMPY, Entry, FolderSource, Source, Stored, computed, text_config
from mlxforge.models.lora import CONFIG_FILE, WEIGHTS_FILE, read_adapter

KINDS = ("lora", "dora", "full")
LOW, MAGNITUDE = ("lora_a", "lora_b"), "m"


def open_source(model: Path, *adapters: Path | None) -> Source:
    """A model folder as an exporter reads it: unpacked, and with the adapters merged in their order.

    Raises:
        ModelError: the folder is no whole model, is packed in another way than MLX's, or an adapter is of another base.
    """
    stored = FolderSource(model)
    options = quantization(stored.config, model)
    chosen = [adapter for adapter in adapters if adapter is not None]
    source: Source = stored
    if options is None:
        _check_floats(stored)
    if options is not None or chosen:
        placement = Placement(model)
        if options is not None:
            source = PackedSource(stored, options, placement)
        for adapter in chosen:
            source = AdaptedSource(source, Adapter(adapter, placement), placement)
    return source


def _check_floats(stored: FolderSource) -> None:
    packed = next((name for name, entry in stored.entries.items() if entry.dtype.startswith(("F8", "U32"))), None)
    if packed is not None:
        what = f"'{packed}' is packed ({stored.entries[packed].dtype}), and config.json does not say how"
        raise ModelError(what, where=str(stored.path), fix="use its float copy, or one that mlx_lm.convert packed")


class Adapter:
    """What an adapter changes: low-rank updates (with magnitudes where it is DoRA), or whole weights.

    Attributes:
        kind: ``lora``, ``rslora``, ``dora`` or ``full``.

    Raises:
        ModelError: the folder holds no whole adapter, or one of a kind that mlx-lm does not know.
    """

    def __init__(self, folder: Path, placement: Placement) -> None:
        self.folder = folder
        self.weights, self.settings = read_adapter(folder, placement.model, placement.names)
        self.type = self.settings["fine_tune_type"]
        own = self.settings.get("mlxforge")
        self.kind = str((own if isinstance(own, dict) else {}).get("kind") or self.type)
        self.full = self.type == "full"
        if self.type not in KINDS:
            self._refuse(f"an adapter of type {self.type!r}", CONFIG_FILE)
        self.scale = 1.0 if self.full else self._scale()
        self.stored = Stored([folder / WEIGHTS_FILE]) if self.full else None
        self._kept: tuple[str, tuple[np.ndarray, np.ndarray]] | None = None

    def _scale(self) -> float:
        parameters = self.settings["lora_parameters"]
        scale = parameters.get("scale") if isinstance(parameters, dict) else None
        if not isinstance(scale, (int, float)) or not np.isfinite(scale):
            self._refuse(f"lora_parameters.scale is {scale!r}, not a number", CONFIG_FILE)
        return float(scale or 0.0)

    def _refuse(self, what: str, file: str = WEIGHTS_FILE) -> None:
        raise ModelError(what, where=str(self.folder / file), fix="name a run or an adapter that mlx-lm reads")

    def targets(self) -> list[str]:
        """mlx-lm's names of the weights that it changes.

        Raises:
            ModelError: it holds something that belongs to no update.
        """
        if self.full:
            return sorted(self.weights)
        parts = (*LOW, MAGNITUDE) if self.type == "dora" else LOW
        paths: dict[str, set[str]] = {}
        for name in self.weights:
            path, _, part = name.rpartition(".")
            if part not in parts:
                self._refuse(f"'{name}' is no part of a {self.type} update")
            paths.setdefault(path, set()).add(part)
        for path, own in paths.items():
            if lacking := [part for part in parts if part not in own]:
                self._refuse(f"'{path}.{lacking[0]}' is missing")
        if not paths:
            self._refuse("the adapter is empty")
        return sorted(f"{path}.weight" for path in paths)

    def misfit(self, target: str, placement: Placement) -> str:
        """Why it does not fit a weight of the base; empty where it does."""
        own = placement.shape(target)
        if target not in placement.names or own is None:
            return f"{target} is not in the base"
        if self.full and f"{target.removesuffix('.weight')}.scales" in placement.names:
            return f"{target} is whole, the base's is packed"
        shape = tuple(self.weights[target].shape) if self.full else self._shape(target, placement.is_embedding(target))
        return "" if shape == own else f"{target} {shape or 'of unfitting parts'} where the base has {own}"

    def _shape(self, target: str, embedding: bool) -> tuple[int, ...]:
        """Shape of a low-rank update; empty where its parts do not fit each other.

        A is (in, r), B (r, out); of an embedding A (rows, r), B (r, dims); of experts A (experts, r, in), B (experts, out, r).
        """
        path = target.removesuffix(".weight")
        a, b = (tuple(self.weights[f"{path}.{part}"].shape) for part in LOW)
        if len(a) == len(b) == 3:
            return (*b[:2], a[2]) if a[0] == b[0] and a[1] == b[2] else ()
        if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
            return ()
        shape = (a[0], b[1]) if embedding else (b[1], a[0])
        magnitude = self.weights.get(f"{path}.{MAGNITUDE}")
        return shape if magnitude is None or tuple(magnitude.shape) == shape[:1] else ()

    def change(self, block: np.ndarray, piece: Piece, start: int, embedding: bool) -> None:
        """Changes float32 rows ``[start:]`` of one tensor of the base, in place."""
        view = block if piece.part is None else block[:, slice(*piece.part)]
        stop = start + (len(block) if block.ndim else 1)
        if self.stored is not None:
            view[...] = self._whole(self.stored, piece, start, stop)
            return
        path = piece.target.removesuffix(".weight")
        a, b = self._low(path)
        if piece.row is not None:
            view += b[piece.row, start:stop] @ a[piece.row]
        elif a.ndim == 3:
            for row in range(start, stop):
                view[row - start] += b[row] @ a[row]
        else:
            view += a[start:stop] @ b if embedding else b.T[start:stop] @ a.T
        if (magnitude := self.weights.get(f"{path}.{MAGNITUDE}")) is not None:
            wanted = np.array(magnitude.astype(mx.float32))[start:stop]
            view *= (wanted / np.linalg.norm(view, axis=1))[:, None]

    def _low(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """A and B of the layer that was asked for last, in float32; B with the update's scale."""
        if self._kept is None or self._kept[0] != path:
            a, b = (self.weights[f"{path}.{part}"].astype(mx.float32) for part in LOW)
            self._kept = path, (np.array(a), self.scale * np.array(b))
        return self._kept[1]

    @staticmethod
    def _whole(stored: Stored, piece: Piece, start: int, stop: int) -> np.ndarray:
        if piece.op:
            return OPS[piece.op][1](stored.rows(piece.target))[start:stop]
        if piece.row is not None:
            return stored.rows(piece.target, piece.row, piece.row + 1)[0, start:stop]
        return stored.rows(piece.target, start, stop)


class AdaptedSource:
    """A source with an adapter merged: the tensors that it changes are computed, all others handed on.

    Attributes:
        pieces: name of a changed tensor -> the parts of mlx-lm's weights that it holds.

    Raises:
        ModelError: the adapter is of another base, or changes what cannot be written back.
    """

    def __init__(self, below: Source, adapter: Adapter, placement: Placement) -> None:
        self.below, self.adapter = below, adapter
        self.path, self.config, self.entries, self.homes = below.path, below.config, below.entries, below.homes
        targets = adapter.targets()
        if wrong := [problem for target in targets if (problem := adapter.misfit(target, placement))]:
            what = f"the adapter is of another base: {wrong[0]} ({len(wrong)} such tensors)"
            raise ModelError(what, where=str(adapter.folder), fix="use the base it was trained on")
        self.embeddings = {target for target in targets if placement.is_embedding(target)}
        self.pieces: dict[str, list[Piece]] = {}
        for target in targets:
            for name, piece in placement.pieces(target):
                self._place(name, piece)
        self._tie()

    def _place(self, name: str, piece: Piece) -> None:
        entry, others = self.entries[name], self.pieces.setdefault(name, [])
        if any(one.part is None or one.part == piece.part for one in others) or (others and piece.part is None):
            raise ModelError(f"'{name}' is used twice, by {piece.target} too", where=str(self.path))
        if entry.dtype not in NUMPY:
            raise ModelError(f"'{name}' is of type {entry.dtype}", where=str(self.path), fix="use a float base")
        others.append(piece)

    def _tie(self) -> None:
        """A head that lies in the files beside the embedding that it is tied to changes with it: mlx-lm leaves it out."""
        heads = [name for name in self.entries if name.endswith("lm_head.weight") and name not in self.pieces]
        tables = [name for name, pieces in self.pieces.items() if pieces[0].target in self.embeddings]
        if heads and len(tables) == 1 and text_config(self.config).get("tie_word_embeddings"):
            self.pieces[heads[0]] = self.pieces[tables[0]]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See :class:`Source`."""
        pieces = self.pieces.get(name, [])
        whole = self.adapter.full and bool(pieces) and pieces[0].part is None
        block = _room(self.entries[name], start, stop) if whole else self.below.rows(name, start, stop)
        for piece in pieces:
            self.adapter.change(block, piece, start, piece.target in self.embeddings)
        return block

    def block(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See :class:`Source`."""
        return self.rows(name, start, stop) if name in self.pieces else self.below.block(name, start, stop)

    def chunks(self, name: str) -> Iterator[bytes]:
        """See :class:`Source`."""
        return computed(self, name) if name in self.pieces else self.below.chunks(name)


def _room(entry: Entry, start: int, stop: int | None) -> np.ndarray:
    """Rows to fill, for a tensor of which nothing stays."""
    stop = entry.rows if stop is None else min(stop, entry.rows)
    shape = (max(0, stop - start), *entry.shape[1:]) if entry.shape else ()
    return np.empty(shape, np.float32)


def layers_of(source: Source) -> tuple[PackedSource | FolderSource, list[AdaptedSource]]:
    """The base below a source, and the adapters over it from the first to the last."""
    adapted: list[AdaptedSource] = []
    below: Any = source
    while isinstance(below, AdaptedSource):
        adapted.insert(0, below)
        below = below.below
    return below, adapted
