"""A fused model in transformers, on torch's CPU in an environment of its own: the same logits as in MLX."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from mlxforge.runs.fuse import fuse
from mlxforge.runs.opening import Base

SCRIPTS = Path(__file__).parents[2] / "scripts"
TOKENS = [[5, 17, 300, 41, 9, 120, 7], [1, 2, 3, 500, 401, 77, 77]]
FAMILIES = """llama3 qwen3 gemma3_text mistral qwen2 qwen3_moe gemma gemma2 phi3 olmo2 olmo3 granite granitemoe smollm3 qwen3_5
mixtral lfm2 seed_oss stablelm starcoder2 hunyuan_v1_dense""".split()
# What transformers would take from its own defaults, where mlx-lm has others.
OPTIONS = {
    "phi3": {"pad_token_id": 0},
    "smollm3": {"pad_token_id": 0},
    "starcoder2": {"hidden_act": "gelu"},
    "olmo3": {"rope_theta": 500000.0},
}
# mlx-lm computes Gemma's gelu exactly, transformers by tanh.
BOUND = {"gemma": 5e-3}


@pytest.mark.slow
def test_the_logits_are_those_of_mlx(hub_base, make_adapter, monkeypatch, tmp_path):
    monkeypatch.delenv("MLXFORGE_CACHE")  # the environment is made once for all sessions
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from bench_preference import environment

    python = environment("TRL")
    (tmp_path / "tokens.json").write_text(json.dumps(TOKENS))
    for family in FAMILIES:
        base = hub_base(family, tmp_path / family / "base", **OPTIONS.get(family, {}))
        adapter = make_adapter(tmp_path / family / "adapter", base)
        fuse(Base(str(base), adapter), tmp_path / family / "fused")
    folders = [str(tmp_path / family / "fused") for family in FAMILIES]
    words = [str(python), str(SCRIPTS / "transformers_logits.py"), str(tmp_path / "tokens.json"), *folders]
    subprocess.run(words, check=True, capture_output=True, timeout=600)
    figures = {}
    for family, folder in zip(FAMILIES, map(Path, folders), strict=True):
        assert (folder / "logits.npy").is_file(), f"{family}: {(folder / 'logits.txt').read_text()}"
        own = np.array(load_model(folder)[0](mx.array(TOKENS)).astype(mx.float32))
        figures[family] = float(np.abs(np.load(folder / "logits.npy") - own).max())
    print(json.dumps(figures), file=sys.stderr)
    assert {family: off for family, off in figures.items() if off >= BOUND.get(family, 1e-4)} == {}
