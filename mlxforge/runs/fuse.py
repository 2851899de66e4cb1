"""Fuse: a run or an adapter merged into its base, as one model folder in the Hugging Face layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import ConfigError, MlxforgeError, ModelError
from mlxforge.core.events import Emit, Progress, Warned, ignore
from mlxforge.core.files import check_new_directory, free_space, new_directory
from mlxforge.models.hub import resolve_model
from mlxforge.runs.cards import facts_of, shown_base
from mlxforge.runs.opening import Base, changed_base
from mlxforge.runs.origin import write_origin

if TYPE_CHECKING:
    from mlxforge.export.packed import Repacked
    from mlxforge.export.source import Entry, Source

    Shard = list[Entry]

INDEX = "model.safetensors.index.json"
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
# What belongs to the tokenizer or says how the model is used; the rest of a base folder is not copied.
COPIED = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "LICENSE*", "NOTICE*")
MARGIN = 64 << 20  # bytes of the small files, and for the system


def fuse(
    base: Base,
    output: Path,
    *,
    dequantize: bool = True,
    max_shard_size: int = 5 * 10**9,
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Writes ``base.model`` with ``base.adapters`` merged in to ``output``, which appears whole or not at all.

    Returns:
        ``output``, ``base``, ``kind``, ``packing``, ``tensors``, ``changed``, ``shards``, ``bytes``; of a requantized base
        ``error``: the mean absolute error of the changed weights over the mean absolute change.

    Raises:
        ModelError: no adapter, one of another base, what cannot be written back, or not MLX's own packing.
        ConfigError: the output exists, or is one of the inputs; or a base that is not packed is to be packed again.
        MlxforgeError: the disk is too small.
    """
    if base.adapter is None:
        raise ModelError("there is no adapter to merge", where=base.model, fix="name a run, or --model M --adapter DIR")
    load_blas()
    from mlxforge.export.fuse import layers_of, open_source
    from mlxforge.export.packed import PackedSource, Repacked

    path = resolve_model(base.model)
    check_output(output, (path, *base.adapters), force)
    source = open_source(path, *base.adapters)
    if warning := changed_base(base, path):
        emit(Warned(message=warning))
    below, adapted = layers_of(source)
    changed = {name for layer in adapted for name in layer.pieces}
    packed = isinstance(below, PackedSource)
    if not dequantize:
        if not isinstance(below, PackedSource):
            raise ConfigError("the base is not packed", where="--requantize", fix="leave it out")
        source = Repacked(source, below, changed)
    shards = plan(source, max_shard_size)
    total = sum(entry.nbytes for shard in shards for entry in shard)
    _check_space(output, total)
    names = shard_names(len(shards), indexed=(path / INDEX).is_file())
    kind = " + ".join(layer.adapter.kind for layer in adapted)
    packing = "as the base's" if not packed else "unpacked" if dequantize else "packed as the base's"
    with new_directory(output, replace=force) as folder:
        done = 0
        for name, shard in zip(names, shards, strict=True):
            for size in write_shard(folder / name, shard, source):
                done += size
                emit(Progress(task="writing the model", done=done, total=total, unit="B"))
        if names != ["model.safetensors"]:
            _write_index(folder / INDEX, names, shards, total)
        write_rest(folder, base, source, kind, packing)
    result: dict[str, Any] = {"output": str(output), "base": base.model, "kind": kind, "packing": packing}
    result |= {"tensors": sum(map(len, shards)), "changed": len(changed), "shards": len(shards), "bytes": total}
    return result | (_error(source) if isinstance(source, Repacked) else {})


def _error(source: Repacked) -> dict[str, float | None]:
    errors, changes = (sum(column) for column in zip(*(source.errors.values() or [(0.0, 0.0)]), strict=True))
    return {"error": errors / changes if changes else None}


def plan(source: Source, limit: int) -> list[Shard]:
    """The tensors of each file to write: those of the base's file, cut where they exceed ``limit`` bytes."""
    shards: list[Shard] = []
    last, size = None, 0
    order = {file: number for number, file in enumerate(sorted(set(source.homes.values())))}
    for entry in sorted(source.entries.values(), key=lambda one: order[source.homes[one.name]]):
        file = source.homes[entry.name]
        if file != last or size + entry.nbytes > limit:
            shards.append([])
            last, size = file, 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


def shard_names(count: int, indexed: bool) -> list[str]:
    """File names as Hugging Face gives them."""
    if count == 1 and not indexed:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_shard(file: Path, shard: Shard, source: Source) -> Iterator[int]:
    """Writes one safetensors file, a block at a time; yields the bytes of each."""
    from mlxforge.export.source import metadata

    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | metadata(source.homes[shard[0].name])}
    start = 0
    for entry in shard:
        offsets = [start, start + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
        start += entry.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for entry in shard:
            begin = handle.tell()
            for chunk in source.chunks(entry.name):
                handle.write(chunk)
                yield len(chunk)
            if handle.tell() - begin != entry.nbytes:
                what = f"'{entry.name}' takes {handle.tell() - begin} bytes, not {entry.nbytes}"
                raise ModelError(what, where=str(source.path), fix="report this")


def write_rest(folder: Path, base: Base, source: Source, kind: str, packing: str) -> None:
    """config.json, tokenizer, template, generation config, card and origin."""
    from mlxforge.export.card import card

    for file in sorted({file for pattern in COPIED for file in source.path.glob(pattern) if file.is_file()}):
        if file.name != INDEX:
            shutil.copyfile(file, folder / file.name)
    if json.loads((folder / "config.json").read_bytes()) != source.config:
        (folder / "config.json").write_text(json.dumps(source.config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    homes = [home for home in (base.run, *reversed(base.adapters)) if home and (home / TEMPLATE).is_file()]
    if homes:
        _use_template(folder, homes[0])
    facts = facts_of(base, source.path, kind=kind, packing=packing, relation="finetune")
    (folder / "README.md").write_text(card(shown_base(base, source.path), facts), encoding="utf-8")
    write_origin(folder, base, source.path, "fused", packing=packing)


def _use_template(folder: Path, home: Path) -> None:
    """The template of training, and no other beside it that a reader might prefer."""
    for name in (TEMPLATE, GENERATION):
        if (home / name).is_file():
            shutil.copyfile(home / name, folder / name)
    (folder / "chat_template.json").unlink(missing_ok=True)
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        content = json.loads(settings.read_bytes())
        if content.pop("chat_template", None) is not None:
            settings.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_index(file: Path, names: list[str], shards: list[Shard], total: int) -> None:
    places = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    file.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n")


def check_output(output: Path, inputs: tuple[Path, ...], force: bool) -> None:
    """Raises ConfigError where ``output`` must not become a model folder; see :func:`check_new_directory`."""
    check_new_directory(
        output, inputs, force, what="model", kind="model folder", ours=lambda one: (one / "config.json").is_file()
    )


def _check_space(output: Path, total: int) -> None:
    free = free_space(output)
    if free < total + MARGIN:
        what = f"the model takes {total / 1e6:,.0f} MB and {MARGIN / 1e6:,.0f} stay free, but there are {free / 1e6:,.0f} MB"
        raise MlxforgeError(what, where=str(output), fix="free space or choose another disk")
