"""What a GGUF file begins with: counts, keys and the table of tensors (github.com/ggml-org/ggml, docs/gguf.md), version 3.

The gguf package's writer packs value by value, which takes half a second for the tokens and merges of a vocabulary.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

Key = Sequence[Any]  # key, value, GGUFValueType (or its name); of an array, the type of its items may follow
VERSION = 3
ALIGNMENT = 32  # bytes to a multiple of which each tensor begins; the default, which needs no key
TEXT, ARRAY = GGUFValueType.STRING, GGUFValueType.ARRAY
NUMBERS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


def header(keys: Sequence[Key], tensors: Sequence[tuple[str, tuple[int, ...], str, int]]) -> bytes:
    """The bytes before the first tensor, filled up to the alignment.

    Args:
        keys: in the order of the file.
        tensors: name, shape in numpy's order, ggml type and bytes, in the order of the file.

    Raises:
        ValueError: a key or a tensor is there twice, or a value is not of its type.
    """
    for names in ([row[0] for row in keys], [tensor[0] for tensor in tensors]):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{twice[0]} is there twice")
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(keys))]
    for key, value, kind, *item in keys:
        parts += [text(key), value_bytes(key, value, value_type(kind), value_type(item[0]) if item else None)]
    place = 0
    for name, shape, kind, size in tensors:
        sizes = tuple(reversed(shape)) or (1,)
        parts += [text(name), struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, GGMLQuantizationType[kind], place)]
        place += padded(size)
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % ALIGNMENT)


def padded(size: int) -> int:
    """Bytes with the filling up to the next tensor."""
    return size + -size % ALIGNMENT


def value_type(kind: GGUFValueType | int | str) -> GGUFValueType:
    """The type of a value from its name, number or itself."""
    return GGUFValueType[kind] if isinstance(kind, str) else GGUFValueType(kind)


def text(value: str | bytes) -> bytes:
    """A string with its length before it."""
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value_bytes(key: str, value: Any, kind: GGUFValueType, item: GGUFValueType | None) -> bytes:
    """Type and content of a key's value."""
    begin = struct.pack("<I", kind)
    if kind != ARRAY:
        return begin + (text(value) if kind == TEXT else numbers(key, [value], kind))
    values = value.tolist() if isinstance(value, np.ndarray) else list(value)
    if item is None:
        if not values:
            raise ValueError(f"{key}: an empty array needs the type of its items")
        item = GGUFValueType.get_type(values[0])
        if any(type(one) is not type(values[0]) for one in values):
            raise ValueError(f"{key}: items of several types")
    content = b"".join(map(text, values)) if item == TEXT else numbers(key, values, item)
    return begin + struct.pack("<IQ", item, len(values)) + content


def numbers(key: str, values: list[Any], kind: GGUFValueType) -> bytes:
    """Numbers one after the other; none is cut or wrapped to fit."""
    array = np.array(values)
    made = array.astype(NUMBERS[kind])
    if array.dtype.kind not in "biuf" or (made.dtype.kind != "f" and not np.array_equal(made, array)):
        raise ValueError(f"{key}: {values[0]!r} is not of type {kind.name}")
    return made.tobytes()
