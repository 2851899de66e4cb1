"""Writes a GGUF file: header first, then tensor after tensor in blocks of rows, so that no tensor need fit in memory."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Union

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from mlxforge.core.errors import ConfigError, MlxforgeError, ModelError, RunFailed
from mlxforge.core.events import Emit, Progress, ignore
from mlxforge.core.files import disk_errors, new_file
from mlxforge.export.general import Key, file_keys, general
from mlxforge.export.quantize import (
    BadValues,
    Described,
    Encoder,
    chosen_types,
    file_order,
    library,
    nbytes,
    needs_library,
    require_library,
)
from mlxforge.export.source import Source

ALIGNMENT = 32  # bytes; the GGUF default
AHEAD = 48 << 20  # bytes of float32 that may wait to be converted and written, beside the block being read
MARGIN = 16 << 20  # bytes of free space beside the file
LLAMA_QUANTIZE = "llama-quantize"

Finish = Callable[[], Union[bytes, np.ndarray]]


class Placed(Described, Protocol):
    """What the writer needs of a tensor of the file; see :mod:`mlxforge.export.layout`."""

    def blocks(self, source: Source) -> Iterator[np.ndarray]: ...
    def passthrough(self, source: Source, kind: str) -> bytes | None: ...


def write_gguf(
    output: Path,
    source: Source,
    placed: Sequence[Placed],
    metadata: Sequence[Key],
    quant: str,
    *,
    name: str = "",
    base_model: str = "",
    force: bool = False,
    threads: int | None = None,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Writes ``output``, which appears whole or not at all.

    Tensors lie in llama-quantize's order. Quantized types are made by ggml inside xllamacpp; without it, by a
    ``llama-quantize`` on the PATH from a temporary float16 file.

    Args:
        metadata: (key, value, GGUFValueType) of architecture and vocabulary; what is ``general.*`` is added here.
        name: of the model, for ``general.name``; the folder's where it is empty.

    Returns:
        ``file``, ``quant``, ``bytes``, ``tensors``, ``types`` (type: count), ``fallbacks`` (tensor: "Q6_K -> Q8_0") and
        ``quantizer`` (what made the bytes).

    Raises:
        ConfigError: an unknown quantization, or the output exists.
        ModelError: values that the type cannot hold.
        MissingExtraError: neither xllamacpp nor llama-quantize is there.
        MlxforgeError: the disk is too small.
        RunFailed: llama-quantize failed.
    """
    check_output(output, force)
    tensors = sorted(placed, key=lambda tensor: file_order(tensor.name))
    types, fallbacks = chosen_types(tensors, metadata, quant)
    keys = file_metadata(source, tensors, metadata, quant, name, base_model)
    result: dict[str, Any] = {"file": str(output), "quant": quant}
    if needs_library(types.values()) and library() is None:
        quantizer = by_llama_quantize(output, source, tensors, keys, quant, threads, emit)
        types = read_types(output)
    else:
        quantizer = "ggml (xllamacpp)" if library() is not None else "numpy"
        check_space(output, sum(padded(nbytes(types[tensor.name], tensor.shape)) for tensor in tensors))
        with new_file(output) as temporary:
            write_file(temporary, source, tensors, keys, types, f"writing {output.name}", threads, emit)
    counts = dict(Counter(types.values()).most_common())
    result |= {"bytes": output.stat().st_size, "tensors": len(types), "types": counts}
    return result | {"fallbacks": fallbacks, "quantizer": quantizer}


def file_metadata(
    source: Source, tensors: Sequence[Placed], metadata: Sequence[Key], quant: str, name: str, base_model: str
) -> list[Key]:
    """All keys of the file in order: architecture, ``general.*``, the rest, and last what llama-quantize would set."""
    last = file_keys(quant)
    own = {row[0] for row in last}
    first = [row for row in metadata if row[0] == "general.architecture"]
    rest = [row for row in metadata if row[0] not in own | {"general.architecture"}]
    given = {row[0] for row in rest}
    added = [row for row in general(source.path, tensors, name, base_model) if row[0] not in given]
    return [*first, *added, *rest, *last]


def write_file(
    path: Path,
    source: Source,
    tensors: Sequence[Placed],
    keys: Sequence[Key],
    types: dict[str, str],
    task: str,
    threads: int | None,
    emit: Emit,
) -> None:
    """Header, keys, tensor table and tensors."""
    writer = header(keys, tensors, types)
    total = sum(nbytes(types[tensor.name], tensor.shape) for tensor in tensors)
    done = 0
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = writer.fout[0]
        file.write(bytes(-file.tell() % ALIGNMENT))
        with Encoder(threads) as encoder:
            for content, ends in contents(encoder, source, tensors, types):
                file.write(content)
                done += len(content) if isinstance(content, bytes) else content.nbytes
                if ends:
                    file.write(bytes(-file.tell() % ALIGNMENT))
                emit(Progress(task=task, done=done, total=total, unit="B"))
    finally:
        writer.close()
    if done != total:
        raise ModelError(f"the tensors took {done} bytes, not {total}", where=str(source.path))


def header(keys: Sequence[Key], tensors: Sequence[Placed], types: dict[str, str]) -> GGUFWriter:
    """A writer that knows all keys and tensors, and no tensor's content."""
    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = GGUFWriter(None, "", use_temp_file=False)
    writer.kv_data[0].clear()  # keys come in the order given, the architecture's too
    for key, value, kind, *item in keys:
        kinds = [GGUFValueType[one] if isinstance(one, str) else GGUFValueType(one) for one in (kind, *item)]
        writer.add_key_value(key, value.tolist() if isinstance(value, np.ndarray) else value, *kinds)
    for tensor in tensors:
        kind = types[tensor.name]
        shape = tensor.shape if tensor.shape else (1,)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), nbytes(kind, shape), GGMLQuantizationType[kind])
    return writer


def contents(
    encoder: Encoder, source: Source, tensors: Sequence[Placed], types: dict[str, str]
) -> Iterator[tuple[bytes | np.ndarray, bool]]:
    """The bytes of all tensors in order, and whether a tensor ends with them; later blocks are converted meanwhile."""
    waiting: deque[tuple[Placed, Finish, bool, int]] = deque()
    pending = 0

    def finished() -> tuple[bytes | np.ndarray, bool]:
        tensor, finish, ends, size = waiting.popleft()
        nonlocal pending
        pending -= size
        try:
            return finish(), ends
        except BadValues as error:
            fix = "use --quant bf16" if "range" in str(error) else "the model is damaged; train or fuse it anew"
            what = f"'{tensor.name}' {error} as {types[tensor.name]}" if "range" in str(error) else f"'{tensor.name}' {error}"
            raise ModelError(what, where=str(source.path), fix=fix) from error

    for tensor in tensors:
        for finish, ends, size in started(encoder, source, tensor, types[tensor.name]):
            waiting.append((tensor, finish, ends, size))
            pending += size
            while pending > AHEAD:
                yield finished()
    while waiting:
        yield finished()


def started(encoder: Encoder, source: Source, tensor: Placed, kind: str) -> Iterator[tuple[Finish, bool, int]]:
    """A tensor's blocks on their way: the call that waits for the bytes, whether it is the last, bytes held."""
    stored = tensor.passthrough(source, kind)
    if stored is not None:
        yield (lambda: stored), True, len(stored)
        return
    rest = int(np.prod(tensor.shape, dtype=np.int64))
    for block in tensor.blocks(source):
        rest -= block.size
        yield encoder.start(block, kind, through16=not tensor.keep32), rest <= 0, block.nbytes


def padded(size: int) -> int:
    """Bytes with the filling up to the next tensor."""
    return size + -size % ALIGNMENT


def check_output(output: Path, force: bool) -> None:
    """Raises ConfigError where ``output`` is there and not to be replaced, or is a folder."""
    if output.is_dir():
        raise ConfigError("is a folder", where=str(output), fix="name a file such as out.gguf")
    if os.path.lexists(output) and not force:
        raise ConfigError("is there already", where=str(output), fix="--force replaces it")


def check_space(output: Path, total: int) -> None:
    """Raises MlxforgeError where the disk has no room for ``total`` bytes."""
    home = next(parent for parent in output.absolute().parents if parent.is_dir())
    with disk_errors(output):
        free = shutil.disk_usage(home).free
    if free < total + MARGIN:
        what = f"the file takes {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise MlxforgeError(what, where=str(output), fix="free space or choose another disk")


def by_llama_quantize(
    output: Path,
    source: Source,
    tensors: Sequence[Placed],
    keys: Sequence[Key],
    quant: str,
    threads: int | None,
    emit: Emit,
) -> str:
    """Makes ``output`` by a llama-quantize on the PATH, from a float16 file that goes again; returns what made it."""
    program = shutil.which(LLAMA_QUANTIZE)
    if program is None:
        require_library(quant)
        raise AssertionError("unreachable: the library is missing")
    half, _ = chosen_types(tensors, keys, "f16")
    total = sum(padded(nbytes(half[tensor.name], tensor.shape)) for tensor in tensors)
    check_space(output, 2 * total)
    own = {row[0] for row in file_keys(quant)}
    with new_file(output) as temporary:
        middle = temporary.with_name(temporary.name.replace(f".{output.name}.", f".{output.name}.f16."))
        try:
            named = [*(row for row in keys if row[0] not in own), *file_keys("f16")]
            write_file(middle, source, tensors, named, half, f"writing {output.name} as f16", threads, emit)
            command = [program, str(middle), str(temporary), quant.upper(), str(threads or os.cpu_count() or 1)]
            ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if ran.returncode:
                lines = [line for line in (ran.stderr + ran.stdout).splitlines() if line.strip()]
                raise RunFailed(f"failed: {lines[-1] if lines else ran.returncode}", where=program, fix="install xllamacpp")
        finally:
            middle.unlink(missing_ok=True)
    return program


def read_types(path: Path) -> dict[str, str]:
    """Type of every tensor of a file, by name."""
    from gguf import GGUFReader

    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
