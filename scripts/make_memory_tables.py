"""Writes the tables of docs/memory.md: the longest context that models can be trained with in a Mac's memory, as forecast.

    python scripts/make_memory_tables.py          # writes them
    python scripts/make_memory_tables.py --check  # exit 1 where the page differs

Shapes are those of the models' own config.json; nothing is downloaded. Nothing here was measured on Metal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxforge.core.settings import LoraSettings, SftConfig
from mlxforge.models.shapes import Shapes, shapes
from mlxforge.runs.fit import MARGIN
from mlxforge.runs.forecast import Batch, Forecast, Work, forecast

PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- made by scripts/make_memory_tables.py -->\n", "<!-- end -->"
GIB = 1 << 30
# GB of a Mac -> share of it that Metal recommends to use at most.
MACS = {8: 2 / 3, 16: 2 / 3, 32: 2 / 3, 64: 3 / 4, 128: 3 / 4}
CONTEXTS = (32768, 16384, 8192, 4096, 2048, 1024, 512)
KEYS = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        "vocab_size", "tie_word_embeddings")  # fmt: skip
# name -> (model type, the values of KEYS, published number of parameters)
MODELS: dict[str, tuple[str, tuple[Any, ...], int]] = {
    "Qwen2.5 0.5B": ("qwen2", (896, 24, 4864, 14, 2, 64, 151936, True), 494_032_768),
    "Llama 3.2 1B": ("llama", (2048, 16, 8192, 32, 8, 64, 128256, True), 1_235_814_400),
    "Qwen3 1.7B": ("qwen3", (2048, 28, 6144, 16, 8, 128, 151936, True), 1_720_574_976),
    "Llama 3.2 3B": ("llama", (3072, 28, 8192, 24, 8, 128, 128256, True), 3_212_749_824),
    "Qwen3 4B": ("qwen3", (2560, 36, 9728, 32, 8, 128, 151936, True), 4_022_468_096),
    "Mistral 7B v0.3": ("llama", (4096, 32, 14336, 32, 8, 128, 32768, False), 7_248_023_552),
    "Llama 3.1 8B": ("llama", (4096, 32, 14336, 32, 8, 128, 128256, False), 8_030_261_248),
    "Qwen3 14B": ("qwen3", (5120, 40, 17408, 40, 8, 128, 151936, False), 14_768_307_200),
    "Mistral Small 24B": ("llama", (5120, 40, 32768, 32, 8, 128, 131072, False), 23_572_403_200),
    "Qwen2.5 32B": ("qwen2", (5120, 64, 27648, 40, 8, 128, 152064, False), 32_763_876_352),
    "Llama 3.3 70B": ("llama", (8192, 80, 28672, 64, 8, 128, 128256, False), 70_553_706_496),
}
COMMON = {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 32768, "torch_dtype": "bfloat16"}
PACKED = {"quantization": {"bits": 4, "group_size": 64}}
# column -> (what is trained, whether the base is packed)
COLUMNS = {"LoRA, 4-bit": ("lora", True), "LoRA, bf16": ("lora", False), "full, bf16": ("full", False)}
RANK = 16


def config_of(name: str) -> dict[str, Any]:
    """config.json of a model, as far as its shapes go."""
    kind, values, _ = MODELS[name]
    return {"model_type": kind, **dict(zip(KEYS, values, strict=True)), **COMMON}


def shapes_of(name: str, column: str) -> Shapes:
    """A model's shapes on Metal."""
    kind, packed = COLUMNS[column]
    return shapes(config_of(name) | (PACKED if packed else {}), LoraSettings(kind=kind, rank=RANK), gpu=True)


def taken(model: Shapes, column: str, context: int, recompute: bool) -> Forecast:
    """What a micro-batch of one conversation of ``context`` tokens takes, half of it trained."""
    settings = SftConfig(lora=LoraSettings(kind=COLUMNS[column][0], rank=RANK), grad_checkpoint=recompute)
    return forecast(settings, Work((Batch(context, context // 2, context**2),), context), model=model)


def longest(model: Shapes, column: str, memory: int, recompute: bool) -> str:
    """The longest context that fits, a dash where none does."""
    room = memory * MACS[memory] * GIB
    fitting = (context for context in CONTEXTS if MARGIN * taken(model, column, context, recompute).total <= room)
    return f"{found:,}" if (found := next(fitting, None)) else "–"


def cell(model: Shapes, column: str, memory: int) -> str:
    """The longest context without and with layers recomputed."""
    plain, recomputed = (longest(model, column, memory, recompute) for recompute in (False, True))
    return "–" if plain == recomputed == "–" else f"{plain} / {recomputed}"


def rows(names: list[str]) -> Mapping[str, Mapping[int, list[str]]]:
    """model -> GB of a Mac -> cells."""
    found: dict[str, dict[int, list[str]]] = {}
    for name in names:
        columns = {column: shapes_of(name, column) for column in COLUMNS}
        found[name] = {memory: [cell(model, column, memory) for column, model in columns.items()] for memory in MACS}
    return found


def text(found: Mapping[str, Mapping[int, list[str]]]) -> str:
    """One table a Mac."""
    parts = []
    for memory, share in MACS.items():
        parts += [f"### {memory} GB (forecast)", "", f"Of them {memory * share:.1f} GB for MLX.", ""]
        parts += [f"| model | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
        parts += [f"| {name} | {' | '.join(cells[memory])} |" for name, cells in found.items()]
        parts += [""]
    return "\n".join(parts)


def page(tables: str) -> str:
    """docs/memory.md with these tables."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    made = page(text(rows(list(MODELS))))
    if "--check" in sys.argv:
        sys.exit(made != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(made, encoding="utf-8")
