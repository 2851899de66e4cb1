"""A model folder, looked over before anything heavy is loaded; and its content hash."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ModelError
from mlxforge.core.files import bytes_hash, file_hash
from mlxforge.models.detect import read_config, read_json

PICKLES = ("*.bin", "*.pth", "*.pt")
HEADER_LIMIT = 100 << 20  # bytes; the limit of the safetensors format itself
HASH_WHOLE = 64 << 20  # bytes of weights up to which the hash reads all of them
HASH_BLOCK, HASH_BLOCKS = 1 << 20, 8
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model")


def check_model_files(path: Path) -> dict[str, Any]:
    """config.json, tokenizer and whole safetensors are there. Returns the config.

    Raises:
        ModelError: the first thing that is wrong, with the file's name.
    """
    config = read_config(path)
    check_tokenizer_files(path)
    shards = weight_files(path)
    listed = indexed_shards(path)
    for missing in sorted(listed - {shard.name for shard in shards}):
        raise ModelError("a part of the weights is missing", where=str(path / missing), fix="download the model again")
    for shard in shards:
        safetensors_header(shard)
    return config


def check_tokenizer_files(path: Path) -> None:
    """Raises ModelError for a folder without a tokenizer. What is in it is read once, by detection."""
    if not any((path / name).is_file() for name in TOKENIZERS) and not (path / "vocab.json").is_file():
        fix = "copy tokenizer.json and tokenizer_config.json from the model's repository"
        raise ModelError("the model folder has no tokenizer (tokenizer.json or tokenizer.model)", where=str(path), fix=fix)


def weight_files(path: Path) -> list[Path]:
    """The safetensors that mlx-lm reads (``model*.safetensors``), in order of name.

    Raises:
        ModelError: there are none; it says what there is instead.
    """
    shards = sorted(path.glob("model*.safetensors"))
    if shards:
        return shards
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if pickles:
        raise ModelError(
            f"only pickled weights ({pickles[0]}), which can run code when read",
            where=str(path),
            fix="choose a safetensors copy, or convert once with transformers: save_pretrained(DIR, safe_serialization=True)",
        )
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if others:
        raise ModelError(f"no model*.safetensors; there is {others[0]}", where=str(path), fix="rename it to model.safetensors")
    raise ModelError("no weights (model*.safetensors)", where=str(path), fix="download the whole model")


def indexed_shards(path: Path) -> set[str]:
    """File names that ``model.safetensors.index.json`` lists; empty where there is no index."""
    file = path / "model.safetensors.index.json"
    if not file.is_file():
        return set()
    names = read_json(file).get("weight_map")
    if not isinstance(names, dict):
        raise ModelError("the index has no weight_map", where=str(file), fix="download the file again")
    return {str(name) for name in names.values()}


def safetensors_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: name -> ``{"dtype", "shape", "data_offsets"}``.

    Raises:
        ModelError: it is truncated or no safetensors at all.
    """
    damaged = {"where": str(file), "fix": "download the file again"}
    size = file.stat().st_size
    with open(file, "rb") as handle:
        start = handle.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > HEADER_LIMIT or 8 + length > size:
            raise ModelError("not a whole safetensors file: its header is cut off or damaged", **damaged)
        raw = handle.read(length)
    try:
        header = json.loads(raw)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise ModelError("not a safetensors file: its header is no JSON of tensors", **damaged) from error
    if 8 + length + end != size:
        raise ModelError(f"truncated: {size:,} bytes where the header promises {8 + length + end:,}", **damaged)
    return tensors


def model_hash(path: Path) -> str:
    """SHA-256 of a model's config and weights, for lineage.

    Up to 64 MB of weights are read whole; beyond, each file counts by its header, its size and eight blocks of 1 MB spread
    evenly over it, which takes a fraction of a second and sees any retraining.
    """
    shards = weight_files(path)
    config = (path / "config.json").read_bytes()
    if sum(shard.stat().st_size for shard in shards) <= HASH_WHOLE:
        return bytes_hash(config, *(part for shard in shards for part in (shard.name, file_hash(shard))))
    return bytes_hash(config, *(part for shard in shards for part in sampled(shard)))


def written_at(path: Path) -> str:
    """When weights were last written that :func:`model_hash` only samples; empty where it reads them whole.

    A merged adapter may change few tensors, all of them between the samples.
    """
    known = [shard.stat() for shard in weight_files(path)]
    return " ".join(str(one.st_mtime_ns) for one in known) if sum(one.st_size for one in known) > HASH_WHOLE else ""


def sampled(file: Path) -> Iterator[bytes | str]:
    """A file's name and size, its header, and blocks spread evenly from the header's end to the file's."""
    size = file.stat().st_size
    yield f"{file.name} {size}"
    with open(file, "rb") as handle:
        length = 8 + int.from_bytes(handle.read(8), "little")
        handle.seek(0)
        yield handle.read(min(length, size))
        span = max(size - length - HASH_BLOCK, 0)
        for block in range(HASH_BLOCKS):
            handle.seek(length + span * block // (HASH_BLOCKS - 1), os.SEEK_SET)
            yield handle.read(HASH_BLOCK)
