"""A model's tensors as an exporter reads them: the base's own names, a block of rows at a time, in float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlxforge.core.errors import ModelError
from mlxforge.models.check import check_model_files, safetensors_header, weight_files

NUMPY: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Entry:
    """One tensor: its name in the base, safetensors type (F32, F16, BF16, …) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Source(Protocol):
    """What an exporter needs of a model; packed layers appear unpacked, adapters merged.

    Attributes:
        path: folder with config.json and the tokenizer.
        config: config.json without what says how weights are packed.
        entries: the tensors by name, in the order of the files.
    """

    path: Path
    config: dict[str, Any]
    entries: Mapping[str, Entry]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Float32 values of ``[start:stop]`` of the first axis, contiguous; only these are read."""

    def raw(self, name: str) -> bytes | None:
        """The stored bytes of a tensor that is handed on as it lies; None where it is computed."""


class FolderSource:
    """The tensors of a model folder in float types, each row read from disk when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = check_model_files(path)
        self.files: dict[str, tuple[Path, int]] = {}  # name -> its file, and where its bytes begin there
        self.entries: dict[str, Entry] = {}
        for file in weight_files(path):
            with open(file, "rb") as handle:
                data = 8 + int.from_bytes(handle.read(8), "little")
            header = safetensors_header(file)
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
                self.entries[name] = Entry(name, entry["dtype"], tuple(entry["shape"]))
                self.files[name] = (file, data + entry["data_offsets"][0])

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See :class:`Source`."""
        entry = self.entries[name]
        if entry.dtype not in NUMPY:
            raise ModelError(f"'{name}' is of type {entry.dtype}", where=str(self.path), fix="use a float base")
        first = entry.shape[0] if entry.shape else 1
        stop = first if stop is None else min(stop, first)
        width = int(np.prod(entry.shape[1:], dtype=np.int64))
        block = np.empty((stop - start) * width, NUMPY[entry.dtype])
        file, place = self.files[name]
        with open(file, "rb") as handle:
            handle.seek(place + start * width * block.itemsize)
            handle.readinto(block.data)
        return widened(block, entry.dtype).reshape((stop - start, *entry.shape[1:]) if entry.shape else ())

    def raw(self, name: str) -> bytes | None:
        """See :class:`Source`."""
        entry, (file, place) = self.entries[name], self.files[name]
        with open(file, "rb") as handle:
            handle.seek(place)
            return handle.read(int(np.prod(entry.shape, dtype=np.int64)) * NUMPY[entry.dtype].itemsize)


def widened(block: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values of stored ones; bfloat16, which numpy lacks, is the upper half of a float32."""
    if dtype == "BF16":
        wide = block.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return block.astype(np.float32, copy=False)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the language model: ``text_config`` over the rest where it is nested."""
    inner = config.get("text_config")
    return json.loads(json.dumps({**config, **inner})) if isinstance(inner, dict) else config
