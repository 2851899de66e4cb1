"""How far the forecast of memory is from what MLX measures, over a grid of settings on the embedded model and tiny ones.

    python scripts/bench_forecast.py             # all, some minutes
    python scripts/bench_forecast.py sft         # cases whose name holds a word

Each line: forecast and measured peak of two updates in MB, their ratio, and the ratio of the seconds. Exit 1 where a ratio of
memory is outside of 0.8 to 1.2.
"""

from __future__ import annotations

import gc
import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from mlxforge.core.blas import load_blas

load_blas()  # before anything imports MLX

from mlxforge.core.config import flags_layer, resolve  # noqa: E402
from mlxforge.core.settings import CptConfig, DpoConfig, KtoConfig, OrpoConfig, SftConfig, TrainSettings  # noqa: E402
from mlxforge.runs.plan import plan  # noqa: E402

PAIRS = "sample:handbook/pairs.train.jsonl"
JOBS: dict[str, tuple[type[TrainSettings], str]] = {
    "cpt": (CptConfig, "sample:handbook/documents"),
    "sft": (SftConfig, "sample:handbook/questions.train.jsonl"),
    "dpo": (DpoConfig, PAIRS),
    "orpo": (OrpoConfig, PAIRS),
    "kto": (KtoConfig, PAIRS),
}
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "dora": {"lora.kind": "dora"},
    "full": {"lora.kind": "full"},
    "recomputed": {"grad_checkpoint": True},
    "1024 tokens": {"batch_tokens": 1024},
    "packed": {"batching": "packed"},
    "packed, recomputed": {"batching": "packed", "grad_checkpoint": True},
    "accumulated": {"accumulate": 4, "batch_tokens": 1024},
    "rank 8, lion": {"lora.rank": 8, "optimizer": "lion"},
    "rows of 64": {"max_length": 64},
}
# Models besides the embedded one: family, changes of its config, whether it is packed.
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "tiny": ("", {}, False),
    "4-bit": ("qwen3", {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 32}, True),
    "large vocabulary": ("llama3", {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 32768}, False),
    "small vocabulary": ("smollm2", {"hidden_size": 128, "intermediate_size": 256}, False),
}
# The other models see the ways that their difference touches.
ALL_WAYS = ("tiny",)
SOME_WAYS = ("as it is", "dora", "full", "recomputed")


def model_folder(name: str, folder: Path) -> str:
    """The model's name or folder; made where it is not the embedded one."""
    family, changes, packed = MODELS[name]
    if not family:
        return name
    from mlxforge.models.tiny import make_tiny

    made = make_tiny(family, folder / name.replace(" ", "-"), **changes)
    if not packed:
        return str(made)
    import mlx_lm

    packed_folder = folder / f"{made.name}-packed"
    with redirect_stdout(io.StringIO()):
        mlx_lm.convert(str(made), str(packed_folder), quantize=True, q_bits=4, q_group_size=64)
    return str(packed_folder)


def cases(words: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """(name, model, job, way) of each case that holds every word."""
    for model in MODELS:
        for job in JOBS:
            for way in WAYS if model in ALL_WAYS else SOME_WAYS:
                # Packed weights have no gradient.
                if way == "full" and MODELS[model][2]:
                    continue
                name = f"{model}, {job}, {way}"
                if all(word in name for word in words):
                    yield name, model, job, way


def ratios(words: list[str]) -> Iterator[tuple[str, float, float, float, float]]:
    """(name, forecast and measured bytes, forecast and measured seconds) of each case."""
    with tempfile.TemporaryDirectory() as folder:
        folders: dict[str, str] = {}
        for name, model, job, way in cases(words):
            if model not in folders:
                folders[model] = model_folder(model, Path(folder))
            kind, data = JOBS[job]
            settings = resolve(kind, flags_layer({"model": folders[model], "data": [data], "sample_tokens": 0} | WAYS[way]))
            gc.collect()  # models of earlier cases
            said, measured = plan(settings), plan(settings, probe=True)
            yield name, said["memory"]["total"], measured["memory"]["total"], said["seconds"], measured["seconds"]


if __name__ == "__main__":
    outside = 0
    print(f"{'case':<44}{'forecast':>10}{'measured':>10}{'ratio':>8}{'time':>8}")
    for name, said, measured, seconds, taken in ratios(sys.argv[1:]):
        outside += not 0.8 < said / measured < 1.2
        mark = "" if 0.8 < said / measured < 1.2 else "  <-"
        figures = f"{said / 2**20:10.1f}{measured / 2**20:10.1f}{said / measured:8.2f}{seconds / max(taken, 0.1):8.2f}"
        print(f"{name:<44}{figures}{mark}", flush=True)
    sys.exit(bool(outside))
