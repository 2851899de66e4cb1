"""Writes a GGUF file: header first, then tensor after tensor in blocks of rows, so that no tensor need fit in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Union

import numpy as np

from mlxforge.core.errors import ConfigError, MlxforgeError, ModelError, RunFailed
from mlxforge.core.events import Emit, Noted, Progress, ignore
from mlxforge.core.files import free_space, new_file
from mlxforge.export.general import file_keys, general
from mlxforge.export.header import ALIGNMENT, Key, header, padded
from mlxforge.export.quantize import (
    BadValues,
    Described,
    Encoder,
    block_of,
    chosen_types,
    file_order,
    library,
    nbytes,
    needs_library,
    require_library,
)
from mlxforge.export.source import Source

AHEAD = 48 << 20  # bytes of float32 that may wait to be converted and written, beside the block being read
MARGIN = 16 << 20  # bytes of free space beside the file
LLAMA_QUANTIZE = "llama-quantize"


class Placed(Described, Protocol):
    """What the writer needs of a tensor of the file; see :mod:`mlxforge.export.tensors`."""

    @property
    def op(self) -> str: ...
    @property
    def sources(self) -> tuple[str, ...]: ...
    def blocks(self, source: Source, *, stored: bool = False) -> Iterator[np.ndarray]: ...


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
    called = next(row[1] for row in keys if row[0] == "general.name")
    if name and called != name:
        emit(Noted(message=f"the file is called '{called}', not '{name}': llama.cpp reads tokens by phi-3 in the name"))
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
    """Header, keys, tensor table and tensors: blocks are read here, converted by some threads and written by one more."""
    table = [(one.name, one.shape, types[one.name], nbytes(types[one.name], one.shape)) for one in tensors]
    total, done = sum(row[-1] for row in table), 0
    with open(path, "wb", buffering=0) as file, Encoder(threads) as encoder, ThreadPoolExecutor(1, "gguf-writer") as writer:
        write_all(file, header(keys, table))
        blocks = (block for tensor in tensors for block in started(encoder, source, tensor, types[tensor.name]))
        jobs = ((block, writer.submit(write_block, file, block)) for block in blocks)
        for block, job in held(jobs, AHEAD):
            try:
                done += job.result()
            except BadValues as error:
                raise bad_values(block, error, source) from error
            emit(Progress(task=task, done=done, total=total, unit="B"))
    if done != total:
        raise ModelError(f"the tensors took {done} bytes, not {total}", where=str(source.path))


@dataclass(frozen=True)
class Block:
    """Rows of a tensor that are being converted: the call waits for their bytes; ``size`` is what they hold meanwhile."""

    name: str
    kind: str
    finish: Callable[[], Union[bytes, np.ndarray]]
    last: bool
    size: int


def started(encoder: Encoder, source: Source, tensor: Placed, kind: str) -> Iterator[Block]:
    """A tensor's blocks on their way. What is stored in the type already is handed on as it lies."""
    left = nbytes(kind, tensor.shape)
    if tensor.op == "copy" and tensor.sources and all(source.entries[name].dtype == kind for name in tensor.sources):
        for chunk in (chunk for name in tensor.sources for chunk in source.chunks(name)):
            left -= len(chunk)
            yield Block(tensor.name, kind, encoder.check(chunk, kind), left <= 0, len(chunk))
        return
    values, size = block_of(kind)
    for rows in tensor.blocks(source, stored=True):
        left -= rows.size // values * size
        finish = encoder.start(rows, kind, through16=not tensor.keep32)
        yield Block(tensor.name, kind, finish, left <= 0, rows.nbytes)


def held(jobs: Iterable[tuple[Block, Future[int]]], limit: int) -> Iterator[tuple[Block, Future[int]]]:
    """The jobs in order, each when the later ones that were begun hold more than ``limit`` bytes."""
    waiting: deque[tuple[Block, Future[int]]] = deque()
    pending = 0
    for job in jobs:
        waiting.append(job)
        pending += job[0].size
        while pending > limit:
            pending -= waiting[0][0].size
            yield waiting.popleft()
    yield from waiting


def write_block(file: BinaryIO | FileIO, block: Block) -> int:
    """Writes a block, and after a tensor's last the filling; returns the bytes of the block."""
    content = block.finish()
    size = content.nbytes if isinstance(content, np.ndarray) else len(content)
    write_all(file, content if isinstance(content, bytes) else content.reshape(-1).data)
    if block.last:
        write_all(file, bytes(-file.tell() % ALIGNMENT))
    return size


def write_all(file: BinaryIO | FileIO, content: bytes | memoryview) -> None:
    """Writes everything: one write of an unbuffered file may take less."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def bad_values(block: Block, error: BadValues, source: Source) -> ModelError:
    """The error for values that a type cannot hold."""
    fix = "use --quant bf16" if error.beyond == "f16" else "the model is damaged; train or fuse it anew"
    return ModelError(f"'{block.name}' {error}", where=str(source.path), fix=fix)


def check_output(output: Path, force: bool) -> None:
    """Raises ConfigError where ``output`` is there and not to be replaced, or is a folder."""
    if output.is_dir():
        raise ConfigError("is a folder", where=str(output), fix="name a file such as out.gguf")
    if os.path.lexists(output) and not force:
        raise ConfigError("is there already", where=str(output), fix="--force replaces it")


def check_quant(placed: Sequence[Placed], metadata: Sequence[Key], quant: str) -> int:
    """Bytes that the tensors of a file will take.

    Raises:
        MissingExtraError: neither xllamacpp nor llama-quantize is there to make them.
    """
    types, _ = chosen_types(placed, metadata, quant)
    if needs_library(types.values()) and library() is None and shutil.which(LLAMA_QUANTIZE) is None:
        require_library(quant)
    return sum(padded(nbytes(types[tensor.name], tensor.shape)) for tensor in placed)


def check_space(output: Path, total: int) -> None:
    """Raises MlxforgeError where the disk has no room for ``total`` bytes."""
    free = free_space(output)
    if free < total + MARGIN:
        what = f"{total / 1e6:,.0f} MB are to be written and {MARGIN / 1e6:,.0f} to stay free; {free / 1e6:,.0f} MB are free"
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
