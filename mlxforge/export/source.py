"""A model's tensors as an exporter reads them: the base's own names, a block of rows at a time, in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlxforge.core.errors import ModelError
from mlxforge.models.check import check_model_files, safetensors_header, weight_files

NUMPY: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
PACKED: dict[str, np.dtype[Any]] = {"U32": np.dtype("<u4"), "U8": np.dtype("u1")}
# Bytes a number of every type that safetensors knows and that fills whole bytes.
SIZES = {
    **{"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2},
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
INFINITY = {"F16": 0x7C00, "BF16": 0x7F80}  # bits, and those of nan are above
BLOCK = 2 << 20  # bytes of stored values, or of float32 ones, that are held at a time: they stay in the cache


@dataclass(frozen=True)
class Entry:
    """One tensor: its name in the base, safetensors type (F32, F16, BF16, …) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Length of the first axis; 1 of a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def width(self) -> int:
        """Numbers a row."""
        return int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes in this type."""
        return self.rows * self.width * SIZES[self.dtype]

    @property
    def blocks(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of blocks of rows, each of at most ``BLOCK`` bytes in float32 or of one row."""
        step = max(1, BLOCK // max(1, 4 * self.width))
        return ((start, min(start + step, self.rows)) for start in range(0, self.rows, step))


class Source(Protocol):
    """What an exporter needs of a model; packed layers appear unpacked, adapters merged.

    Attributes:
        path: folder with config.json and the tokenizer.
        config: config.json without what says how weights are packed.
        entries: the tensors by name, in the order of the files.
        homes: name -> the file of the base that the tensor comes from.
    """

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def entries(self) -> Mapping[str, Entry]: ...
    @property
    def homes(self) -> Mapping[str, Path]: ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Float32 values of ``[start:stop]`` of the first axis, contiguous; only these are read."""

    def block(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The same in the type that they are stored in, bfloat16 as its 16 bits; float32 where they are computed."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """The tensor's bytes in its entry's type, stored or computed, a block at a time."""


class Stored:
    """The tensors of safetensors files, each row read from disk when it is asked for.

    Attributes:
        entries: by name, in the order of the files; of a name that two files hold, the later one counts.
        files: name -> its file, and where its bytes begin there.

    Raises:
        ModelError: a file is damaged, or holds a type that is not known.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.entries: dict[str, Entry] = {}
        self.files: dict[str, tuple[Path, int]] = {}
        for file in files:
            with open(file, "rb") as handle:
                data = 8 + int.from_bytes(handle.read(8), "little")
            header = safetensors_header(file)
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
                self.entries.pop(name, None)
                self.entries[name] = _entry(name, entry, file)
                self.files[name] = file, data + entry["data_offsets"][0]

    @property
    def homes(self) -> dict[str, Path]:
        """See :class:`Source`."""
        return {name: file for name, (file, _) in self.files.items()}

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See :class:`Source`."""
        entry = self.entries[name]
        if entry.dtype not in NUMPY:
            where = str(self.files[name][0])
            raise ModelError(f"'{name}' is of type {entry.dtype}, which is no float", where=where, fix="use a float base")
        return widened(self.block(name, start, stop), entry.dtype)

    def block(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """See :class:`Source`; of packed tensors whole numbers."""
        entry, (file, place) = self.entries[name], self.files[name]
        stop = entry.rows if stop is None else min(stop, entry.rows)
        values = np.empty(max(0, stop - start) * entry.width, (NUMPY | PACKED)[entry.dtype])
        with open(file, "rb") as handle:
            handle.seek(place + start * entry.width * values.itemsize)
            handle.readinto(values.data)
        return values.reshape((max(0, stop - start), *entry.shape[1:]) if entry.shape else ())

    def chunks(self, name: str) -> Iterator[bytes]:
        """See :class:`Source`."""
        left, (file, place) = self.entries[name].nbytes, self.files[name]
        with open(file, "rb") as handle:
            handle.seek(place)
            while left:
                block = handle.read(min(BLOCK, left))
                if not block:
                    raise ModelError("became shorter while it was read", where=str(file), fix="leave the model alone meanwhile")
                left -= len(block)
                yield block


def _entry(name: str, entry: dict[str, Any], file: Path) -> Entry:
    made = Entry(name, entry["dtype"], tuple(entry["shape"]))
    if made.dtype not in SIZES:
        raise ModelError(f"'{name}' is of type {made.dtype}, which is not known", where=str(file), fix="use a float copy")
    start, stop = entry["data_offsets"]
    if stop - start != made.nbytes:
        what = f"'{name}' takes {stop - start:,} bytes where its shape and type need {made.nbytes:,}"
        raise ModelError(what, where=str(file), fix="download the file again")
    return made


def metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself, ``__metadata__``."""
    with open(file, "rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return header.get("__metadata__") or {}


class FolderSource(Stored):
    """The tensors of a model folder as they lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = check_model_files(path)
        super().__init__(weight_files(path))


def widened(block: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values of stored ones; bfloat16, which numpy lacks, is the upper half of a float32."""
    if dtype == "BF16":
        wide = block.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return block.astype(np.float32, copy=False)


def narrowed(block: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values of float32 ones, rounded to nearest, ties to even; bfloat16 as its 16 bits."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):  # what float16 cannot hold is infinite, as anywhere
            return block.astype(NUMPY[dtype], copy=False)
    bits = np.ascontiguousarray(block, np.float32).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    upper = np.ascontiguousarray(rounded.reshape(-1).view(np.uint16)[1::2].reshape(block.shape))
    if np.isnan(block).any():  # rounding must not carry their bits over into a number
        return np.where(np.isnan(block), ((bits >> 16) | 0x40).astype(np.uint16), upper)
    return upper


def computed(source: Source, name: str) -> Iterator[bytes]:
    """``chunks`` of a tensor that is not stored as it is.

    Raises:
        ModelError: a value is not finite, or beyond what the tensor's type can hold.
    """
    entry = source.entries[name]
    for start, stop in entry.blocks:
        block = np.ascontiguousarray(narrowed(source.rows(name, start, stop), entry.dtype))
        if not _finite(block, entry.dtype):
            what = f"'{name}' gets values that are no finite {entry.dtype}"
            raise ModelError(what, where=str(source.path), fix="use a base in bfloat16 or float32, and an adapter without nan")
        yield block.tobytes()


def _finite(stored: np.ndarray, dtype: str) -> bool:
    if dtype not in INFINITY:
        return bool(np.isfinite(stored).all())
    return bool((stored.view(np.uint16) & 0x7FFF).max(initial=0) < INFINITY[dtype])


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the language model: ``text_config`` over the rest where it is nested."""
    inner = config.get("text_config")
    return json.loads(json.dumps({**config, **inner})) if isinstance(inner, dict) else config
