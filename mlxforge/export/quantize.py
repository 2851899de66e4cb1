"""The type of each tensor of a GGUF file, as llama-quantize chooses it, and the bytes of a type.

What is chosen follows llama.cpp's ``llama_tensor_get_type`` for the architectures that mlxforge exports (so no rule of
Falcon's) and without an importance matrix. The rules for four and more query heads a key head concern Q2_K and the IQ types
alone, which are not offered.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from mlxforge.core.errors import ConfigError, MissingExtraError, did_you_mean
from mlxforge.export.source import widened


@dataclass(frozen=True)
class Quant:
    """A kind of file: llama.cpp's number of it (LLAMA_FTYPE) and the ggml type that most tensors get."""

    number: int
    type: str


QUANTS = {
    "f16": Quant(1, "F16"),
    "bf16": Quant(32, "BF16"),
    "q8_0": Quant(7, "Q8_0"),
    "q4_0": Quant(2, "Q4_0"),
    "q5_0": Quant(8, "Q5_0"),
    "q4_k_s": Quant(14, "Q4_K"),
    "q4_k_m": Quant(15, "Q4_K"),
    "q5_k_s": Quant(16, "Q5_K"),
    "q5_k_m": Quant(17, "Q5_K"),
    "q6_k": Quant(18, "Q6_K"),
    "q3_k_m": Quant(12, "Q3_K"),
}
FLOAT_TYPES = {"F32", "F16", "BF16"}
# Where a row is no multiple of the type's block; None of these fits a row that is no multiple of 32: float16.
FALLBACKS = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# Parts of names of matrices that stay as they are: norms, routers, and what is small.
KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|^position_embd\.weight$|^token_types\.weight$"
    r"|time_mix_(first|[wva][012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight"
)
# The first that a name contains decides what kind of tensor it is.
KINDS = {
    "attn_qkv.weight": "value",
    "attn_kv_b.weight": "value",
    "attn_v.weight": "value",
    "attn_k.weight": "key",
    "attn_output.weight": "attn_output",
    "ffn_down": "down",
}
EIGHT = 8  # experts: Mixtral's number, for which llama.cpp has rules of its own
SEVENTY = {"llama", "qwen2"}  # architectures of which 80 layers are llama.cpp's "70B"


class Described(Protocol):
    """What the choice of a type needs of a placed tensor."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def keep32(self) -> bool: ...


def more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is of the first or last eighth, or the third of three between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


Rule = Callable[[int, int], "str | None"]
# Type of the values' matrix by how many there were before it and are in all; None: the file's own type.
VALUE: dict[str, Rule] = {
    "q3_k_m": lambda index, _: "Q5_K" if index < 2 else "Q4_K",
    "q4_k_s": lambda index, _: "Q5_K" if index < 4 else None,
    "q4_k_m": lambda index, count: "Q6_K" if more_bits(index, count) else None,
    "q5_k_m": lambda index, count: "Q6_K" if more_bits(index, count) else None,
}
# Type of the feed-forward's second matrix by its layer and the number of layers.
DOWN: dict[str, Rule] = {
    "q3_k_m": lambda layer, layers: "Q5_K" if layer < layers // 16 else "Q4_K",
    "q4_k_s": lambda layer, layers: "Q5_K" if layer < layers // 8 else None,
    "q4_k_m": lambda layer, layers: "Q6_K" if more_bits(layer, layers) else None,
    "q5_k_m": lambda layer, layers: "Q6_K" if more_bits(layer, layers) else None,
}
ATTN_OUTPUT = {"q3_k_m": "Q4_K"}
ATTN_OUTPUT_OF_EIGHT = {"q3_k_m": "Q5_K", "q4_k_s": "Q5_K", "q4_k_m": "Q5_K"}


def quant_of(name: str) -> Quant:
    """The row of :data:`QUANTS`.

    Raises:
        ConfigError: no such quantization.
    """
    if name not in QUANTS:
        raise ConfigError(f"unknown quantization '{name}'", where="--quant", fix=did_you_mean(name, QUANTS))
    return QUANTS[name]


def file_order(name: str) -> tuple[int, str]:
    """The order in which llama-quantize visits and writes tensors: by layer, then by name."""
    layer = re.match(r"blk\.(\d+)", name)
    return (int(layer[1]) if layer else -1, name)


def dimensions(shape: Sequence[int]) -> int:
    """Dimensions as ggml counts them: leading ones (the last in its order) do not count."""
    return len(shape) - next((i for i, size in enumerate(shape) if size != 1), max(0, len(shape) - 1))


def quantizable(tensor: Described) -> bool:
    """Whether llama-quantize touches the tensor at all."""
    return dimensions(tensor.shape) > 1 and tensor.name.endswith("weight") and not KEPT.search(tensor.name)


def block_of(kind: str) -> tuple[int, int]:
    """Values and bytes of one block of a ggml type."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]]


def nbytes(kind: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of ``shape`` (numpy's order) in a ggml type."""
    values, size = block_of(kind)
    return int(np.prod(shape, dtype=np.int64)) // values * size


def chosen_types(
    placed: Iterable[Described], metadata: Iterable[Sequence[Any]], quant: str
) -> tuple[dict[str, str], dict[str, str]]:
    """The ggml type of every tensor, by name in the order of the file, and those that could not have the meant one.

    Args:
        metadata: (key, value, …) of the file; the architecture, its blocks, experts and heads are read.

    Returns:
        The types, such as ``{"blk.0.attn_q.weight": "Q4_K"}``; and the fallbacks, as ``"Q6_K -> Q8_0"``. Where a row is no
        multiple of 32 llama-quantize refuses some types; here such a tensor is F16.
    """
    tensors = sorted(placed, key=lambda tensor: file_order(tensor.name))
    default = quant_of(quant).type
    if default in FLOAT_TYPES:
        return {tensor.name: default_type(tensor, default) for tensor in tensors}, {}
    chooser = Chooser(quant, default, tensors, {row[0]: row[1] for row in metadata})
    types: dict[str, str] = {}
    fallbacks: dict[str, str] = {}
    for tensor in tensors:
        if not quantizable(tensor):
            types[tensor.name] = default_type(tensor, "F16")
            continue
        meant = chooser.type(tensor)
        types[tensor.name] = fitting(meant, tensor.shape[-1])
        if types[tensor.name] != meant:
            fallbacks[tensor.name] = f"{meant} -> {types[tensor.name]}"
    return types, fallbacks


def default_type(tensor: Described, default: str) -> str:
    """The type of a tensor that is not quantized."""
    return "F32" if tensor.keep32 or dimensions(tensor.shape) < 2 else default


def fitting(kind: str, columns: int) -> str:
    """The type, or what stands for it where a row of ``columns`` values is no whole number of its blocks."""
    if columns % block_of(kind)[0] == 0:
        return kind
    other = FALLBACKS.get(kind, "F16")
    return other if columns % block_of(other)[0] == 0 else "F16"


class Chooser:
    """llama-quantize's choice, tensor after tensor: some rules count what came before."""

    def __init__(self, quant: str, default: str, tensors: Sequence[Described], keys: dict[str, Any]) -> None:
        architecture = str(keys.get("general.architecture", ""))
        self.quant, self.default = quant, default
        self.layers = int(keys.get(f"{architecture}.block_count", 0))
        self.experts = int(keys.get(f"{architecture}.expert_count", 0))
        heads = [keys.get(f"{architecture}.attention.head_count{part}") for part in ("", "_kv")]
        self.seventy = architecture in SEVENTY and self.layers == 80
        if architecture == "llama":
            self.seventy = self.seventy and heads[1] not in (None, heads[0]) and self.experts != EIGHT
        names = [tensor.name for tensor in tensors]
        self.tied = "output.weight" not in names
        self.values = sum(kind_of(name) == "value" for name in names)
        self.seen = {"value": 0, "down": 0}

    def type(self, tensor: Described) -> str:
        """The type that is meant for a tensor; whether its rows allow it is not looked at."""
        if tensor.name == "output.weight" or (self.tied and is_embedding(tensor.name)):
            return "Q8_0" if self.default == "Q8_0" else "Q6_K"
        kind, eight = kind_of(tensor.name), self.experts == EIGHT
        if kind == "value":
            return self._value()
        if kind == "key":
            return "Q8_0" if eight else self.default
        if kind == "attn_output":
            return (ATTN_OUTPUT_OF_EIGHT if eight else ATTN_OUTPUT).get(self.quant, self.default)
        return self._down(tensor.name) if kind == "down" else self.default

    def _value(self) -> str:
        kind = VALUE.get(self.quant, nothing)(self.seen["value"], self.values) or self.default
        self.seen["value"] += 1
        if self.seventy and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"
        return "Q8_0" if self.experts == EIGHT else kind

    def _down(self, name: str) -> str:
        layer = file_order(name)[0] if self.experts > 1 else self.seen["down"]
        self.seen["down"] += 1
        return DOWN.get(self.quant, nothing)(layer, self.layers) or self.default


def nothing(index: int, count: int) -> None:
    """The rule of a quantization that has none."""


def kind_of(name: str) -> str:
    """What a tensor is, as far as a rule asks for it; "" else."""
    return next((kind for part, kind in KINDS.items() if part in name), "")


def is_embedding(name: str) -> bool:
    """Whether the tensor embeds tokens; without an output matrix it is that too."""
    return name in ("token_embd.weight", "per_layer_token_embd.weight")


class BadValues(ValueError):
    """Values that the type cannot hold: beyond the range of the float type ``beyond``, else infinite or no numbers."""

    def __init__(self, beyond: str = "") -> None:
        self.beyond = beyond
        super().__init__(f"holds values beyond the range of {beyond}" if beyond else "holds values that are no finite numbers")


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The ggml functions inside xllamacpp, or None: not installed, or they are not to be seen in this build."""
    spec = importlib.util.find_spec("xllamacpp")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("xllamacpp*.so")):
            found = ctypes.CDLL(str(file))
            if all(hasattr(found, name) for name in ("ggml_quantize_chunk", "ggml_quantize_init")):
                pointer, count = ctypes.c_void_p, ctypes.c_int64
                found.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
                found.ggml_quantize_chunk.restype = ctypes.c_size_t
                found.ggml_quantize_init.argtypes = [ctypes.c_int]
                for name in ("ggml_cpu_fp32_to_fp16", "ggml_cpu_fp16_to_fp32"):
                    if hasattr(found, name):
                        getattr(found, name).argtypes = [pointer, pointer, count]
                        getattr(found, name).restype = None
                return found
    return None


NUMPY_TYPES = FLOAT_TYPES | {"Q8_0"}  # types whose bytes can be made without ggml


def needs_library(types: Iterable[str]) -> bool:
    """Whether some type's bytes cannot be made without ggml."""
    return not set(types) <= NUMPY_TYPES


def require_library(quant: str) -> None:
    """Raises MissingExtraError where ggml is not there."""
    if library() is None:
        raise MissingExtraError("xllamacpp", "gguf", f"{quant} without a llama-quantize on the PATH")


PIECE = 1 << 18  # values that a thread converts at a time: a megabyte of float32, so that they stay in its cache


class Encoder:
    """Turns blocks of float32 rows into the bytes of a ggml type, on several threads.

    Quantized types are made from values rounded to float16 first, so that the file is the one that llama-quantize makes
    of the float16 file.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="gguf")

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def start(self, block: np.ndarray, kind: str, *, through16: bool = True) -> Callable[[], np.ndarray]:
        """Begins to convert values, whole rows along the last axis; the call that is returned waits for the bytes.

        They are float32, float16, or bfloat16 as its 16 bits (uint16).

        Raises:
            BadValues: by the returned call; values that are infinite, NaN, or beyond the type.
        """
        rows = np.ascontiguousarray(block).reshape(-1, block.shape[-1] if block.ndim else 1)
        values, size = block_of(kind)
        if rows.shape[1] % values:
            raise ValueError(f"rows of {rows.shape[1]} values are no whole blocks of {kind}")
        out = np.empty((len(rows), rows.shape[1] // values * size), np.uint8)
        step = max(1, PIECE // max(1, rows.shape[1]))
        convert = CONVERTERS.get(kind) or quantizer(kind, through16)
        futures: list[Future[None]] = [
            self.pool.submit(convert_wide, convert, rows[start : start + step], out[start : start + step])
            for start in range(0, len(rows), step)
        ]

        def finish() -> np.ndarray:
            for future in futures:
                future.result()
            return out

        return finish

    def check(self, stored: bytes, kind: str) -> Callable[[], bytes]:
        """Begins to look through values that lie in a float type already; the call that is returned gives them back.

        Raises:
            BadValues: by the returned call.
        """
        bits = np.frombuffer(stored, np.uint32 if kind == "F32" else np.uint16)
        futures = [self.pool.submit(check_finite, bits[start : start + PIECE], kind) for start in range(0, len(bits), PIECE)]

        def finish() -> bytes:
            for future in futures:
                future.result()
            return stored

        return finish

    def encode(self, block: np.ndarray, kind: str, *, through16: bool = True) -> np.ndarray:
        """The bytes (rows, bytes a row), uint8, of float32 values; see :meth:`start`."""
        return self.start(block, kind, through16=through16)()


def convert_wide(convert: Callable[[np.ndarray, np.ndarray], None], rows: np.ndarray, out: np.ndarray) -> None:
    """Converts stored rows by way of float32, which stays in the processor's cache here."""
    convert(widened(rows, "BF16") if rows.dtype == np.uint16 else rows.astype(np.float32, copy=False), out)


def to_f32(rows: np.ndarray, out: np.ndarray) -> None:
    """Float32 as it is."""
    out.view(np.float32)[:] = rows
    check_finite(out.view(np.uint32), "F32")


def to_f16(rows: np.ndarray, out: np.ndarray) -> None:
    """The nearest float16, ties to even."""
    half = out.view(np.float16)
    ggml = library()
    if ggml is not None and hasattr(ggml, "ggml_cpu_fp32_to_fp16"):
        ggml.ggml_cpu_fp32_to_fp16(rows.ctypes.data, half.ctypes.data, rows.size)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            half[:] = rows
    check_finite(half.view(np.uint16), "F16", rows)


def to_bf16(rows: np.ndarray, out: np.ndarray) -> None:
    """The nearest bfloat16, ties to even; numpy's integers, since ggml may flush the smallest values to zero."""
    bits = rows.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    upper = out.view(np.uint16)
    upper[:] = rounded
    check_finite(upper, "BF16", rows)


INFINITY = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}  # without the sign, no smaller bits are a number


def check_finite(bits: np.ndarray, kind: str, rows: np.ndarray | None = None) -> None:
    """Looks for infinities and NaN in the bits of floats; if ``rows``, which they were made of, have none, it is the range."""
    unsigned = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    if bits.size and int((bits & unsigned).max()) >= INFINITY[kind]:
        raise BadValues(kind.lower() if rows is not None and np.isfinite(rows).all() else "")


def quantizer(kind: str, through16: bool) -> Callable[[np.ndarray, np.ndarray], None]:
    """The function that fills rows of bytes of a quantized type."""
    number, ggml = GGMLQuantizationType[kind], library()
    if ggml is not None:
        ggml.ggml_quantize_init(int(number))

    def convert(rows: np.ndarray, out: np.ndarray) -> None:
        if through16:
            half = np.empty(rows.shape, np.float16)
            to_f16(rows, half.view(np.uint8))
            rows = half.astype(np.float32)
        else:
            check_finite(rows.view(np.uint32), "F32")
        if ggml is not None:
            ggml.ggml_quantize_chunk(int(number), rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None)
            return
        from gguf.quants import quantize

        out[:] = quantize(rows, number)

    return convert


CONVERTERS: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {"F32": to_f32, "F16": to_f16, "BF16": to_bf16}


def dequantized(tensor: Any) -> np.ndarray:
    """Float32 values, in numpy's shape, of a tensor of ``gguf.GGUFReader``."""
    from gguf.quants import dequantize

    return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(tuple(reversed(tensor.shape.tolist())))
