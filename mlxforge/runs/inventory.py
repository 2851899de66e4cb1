"""The models that lie on this disk: the shipped one, folders, fused and exported results, GGUF files, the hub's cache."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import ModelError
from mlxforge.core.files import embedded
from mlxforge.models.adapters import ADAPTER_CONFIG
from mlxforge.models.detect import detect_folder
from mlxforge.runs.origin import read_origin
from mlxforge.runs.record import EVENTS, RECORD

DEPTH = 3  # folders below the one that is searched
SKIPPED = {"node_modules", "__pycache__", "site-packages"}
HEAD = 1 << 20  # bytes of a GGUF file in which its general keys stand
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of GGUF's kinds of values, by number
TEXT, ARRAY = 8, 9


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model on this disk.

    Attributes:
        name: what commands take: a path from here, a hub id, or ``tiny``.
        kind: shipped, folder, fused, mlx, adapter, peft, gguf or hub.
        family: as ``mlxforge models families`` names it; of a GGUF file its architecture; empty where it is not known.
        size: bytes.
        origin: what it was made of, see :mod:`mlxforge.runs.origin`.
        note: such as the quantization, or what is missing.
    """

    name: str
    kind: str
    path: str
    family: str = ""
    size: int = 0
    note: str = ""
    origin: dict[str, Any] = {}


def list_models(folders: list[Path], *, hub: bool = True) -> list[Model]:
    """The shipped model, all that lies in ``folders``, and the hub's cache."""
    tiny = embedded("data", "tiny")
    found = {model.path: model for folder in folders for model in find_models(folder)}
    found.pop(str(tiny.resolve()), None)
    shipped = [Model(name="tiny", kind="shipped", path=str(tiny), family=family_of(tiny), size=size_of(tiny))]
    return [*shipped, *sorted(found.values(), key=lambda one: one.name), *(hub_models() if hub else ())]


def find_models(folder: Path, depth: int = DEPTH) -> Iterator[Model]:
    """Model and adapter folders and GGUF files below ``folder``; run directories, hidden folders and links are passed over."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    names = {entry.name for entry in entries}
    if {RECORD, EVENTS} & names:
        return
    if "config.json" in names and any(name.startswith("model") and name.endswith(".safetensors") for name in names):
        yield _folder(folder)
        return
    if ADAPTER_CONFIG in names:
        origin = read_origin(folder)
        yield _model(folder, str(origin.get("kind") or "adapter"), origin, size=size_of(folder))
        return
    for entry in entries:
        if entry.name.endswith(".gguf") and entry.is_file():
            yield _gguf(Path(entry.path))
        elif depth and not entry.name.startswith(".") and entry.name not in SKIPPED and entry.is_dir(follow_symlinks=False):
            yield from find_models(Path(entry.path), depth - 1)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def family_of(folder: Path) -> str:
    """The family of a model folder; empty where it is none that is known."""
    try:
        return detect_folder(folder).family.name
    except ModelError:
        return ""


def hub_models() -> Iterator[Model]:
    """The models in the hub's cache. A model of which only the description was fetched says so."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for repo in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        snapshots = sorted((one for one in (repo / "snapshots").glob("*") if one.is_dir()), key=lambda one: one.stat().st_mtime)
        if not snapshots:
            continue
        newest = snapshots[-1]
        name = repo.name.removeprefix("models--").replace("--", "/")
        whole = any(newest.glob("*.safetensors")) or any(newest.glob("*.gguf"))
        size = sum(blob.stat().st_size for blob in (repo / "blobs").glob("*") if blob.is_file())
        family = family_of(newest) if (newest / "config.json").exists() else ""
        note = "" if whole else "no weights yet"
        yield Model(name=name, kind="hub", path=str(newest), family=family, size=size, note=note)


def _folder(folder: Path) -> Model:
    origin = read_origin(folder)
    kind, packing = str(origin.get("kind") or "folder"), str(origin.get("packing") or "")
    packing = "" if packing.startswith("as the base") else packing
    return _model(folder, kind, origin, family=family_of(folder), size=size_of(folder), note=packing)


def _gguf(file: Path) -> Model:
    origin, keys = read_origin(file), gguf_keys(file)
    verified = {True: "verified", False: "failed its checks"}.get(origin.get("verified"))  # type: ignore[arg-type]
    notes = [str(one) for one in (origin.get("quant") or quant_of(keys), verified) if one]
    family = str(keys.get("general.architecture") or "")
    return _model(file, "gguf", origin, family=family, size=file.stat().st_size, note=", ".join(notes))


def _model(path: Path, kind: str, origin: dict[str, Any], **said: Any) -> Model:
    return Model(name=os.path.relpath(path), kind=kind, path=str(path.resolve()), origin=origin, **said)


def quant_of(keys: dict[str, Any]) -> str:
    """The kind of numbers of a GGUF file, as ``--quant`` names it; empty where that is not known."""
    from mlxforge.export.quantize import QUANTS

    number = keys.get("general.file_type")
    return next((name for name, row in QUANTS.items() if number is not None and row.number == number), "")


def gguf_keys(file: Path) -> dict[str, Any]:
    """The texts and whole numbers among the first keys of a GGUF file; empty of a damaged one.

    The format is github.com/ggml-org/ggml, docs/gguf.md. The gguf package reads the whole vocabulary, which takes seconds.
    """
    found: dict[str, Any] = {}
    try:
        with open(file, "rb") as handle:
            data = handle.read(HEAD)
    except OSError:  # not ours to read
        return found
    try:
        magic, _, _, count = struct.unpack_from("<4sIQQ", data)
        place = 24
        for _ in range(count if magic == b"GGUF" else 0):
            key, place = _text(data, place)
            (kind,) = struct.unpack_from("<I", data, place)
            found[key], place = _value(data, place + 4, kind)
    except (struct.error, KeyError, UnicodeDecodeError, IndexError):
        pass  # the vocabulary goes on beyond what was read
    return {key: value for key, value in found.items() if value is not None}


def _text(data: bytes, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    end = place + 8 + length
    if end > len(data):
        raise IndexError(end)
    return data[place + 8 : end].decode(), end


def _value(data: bytes, place: int, kind: int) -> tuple[Any, int]:
    """A value and the place after it; None of an array and of a number that is not whole."""
    if kind == TEXT:
        return _text(data, place)
    if kind == ARRAY:
        item, count = struct.unpack_from("<IQ", data, place)
        place += 12
        if item in SIZES:
            return None, place + count * SIZES[item]
        for _ in range(count):
            _, place = _value(data, place, item)
        return None, place
    size = SIZES[kind]
    if place + size > len(data):
        raise IndexError(place)
    return None if kind in (6, 12) else int.from_bytes(data[place : place + size], "little"), place + size
