"""A fused model computes what the adapter over its base computes, and nothing else of the base changes."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.utils import load_model

from mlxforge.core.errors import ConfigError, ModelError
from mlxforge.core.settings import LoraSettings
from mlxforge.models.check import safetensors_header, weight_files
from mlxforge.models.load import load
from mlxforge.models.lora import adapter_config, make_trainable, save_adapter, trainable
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.fuse import fuse
from mlxforge.runs.opening import Base, open_model

TOKENS = mx.array([[5, 17, 300, 41, 9, 120, 7]])


def make_adapter(folder: Path, base: Path, **lora) -> Path:
    folder.mkdir(parents=True)
    model = load(str(base), "float32").model
    config = adapter_config(model, LoraSettings(**{"rank": 4, **lora}), str(base))
    make_trainable(model, config)
    mx.random.seed(1)
    moved = {name: array + 0.05 * mx.random.normal(array.shape) for name, array in trainable(model).items()}
    save_adapter(folder, moved, config)
    return folder


def logits(folder: Path) -> mx.array:
    """By mlx-lm alone."""
    return mlx_lm.utils.load_model(folder)[0](TOKENS)


def adapted(adapter: Path) -> mx.array:
    return open_model(str(adapter), adapter.parent, "float32").loaded.model(TOKENS)


def raw(folder: Path) -> dict[str, bytes]:
    found = {}
    for file in weight_files(folder):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in safetensors_header(file).items():
            found[name] = data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
    return found


CASES = [("llama3", kind) for kind in ("lora", "rslora", "dora", "full")]
CASES += [(family, kind) for family in ("qwen3", "gemma3", "phi3", "mistral") for kind in ("lora", "dora")]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_logits_are_those_of_the_adapter(family, kind, tmp_path):
    base = make_tiny(family, tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, kind=kind)
    result = fuse(Base(str(base), adapter), tmp_path / "fused")
    assert result["kind"] == kind
    assert mx.abs(logits(tmp_path / "fused") - adapted(adapter)).max() < 1e-4
    assert mx.abs(logits(tmp_path / "fused") - logits(base)).max() > 1e-2


def test_what_the_adapter_leaves_alone_is_the_same_bytes(tmp_path):
    base = make_tiny("llama3", tmp_path / "base", dtype="bfloat16")
    adapter = make_adapter(tmp_path / "adapter", base, targets=["q_proj"])
    fuse(Base(str(base), adapter), tmp_path / "fused", max_shard_size=60_000)
    before, after = raw(base), raw(tmp_path / "fused")
    assert set(before) == set(after)
    assert {name for name in before if before[name] != after[name]} == {n for n in before if "q_proj" in n}
    index = json.loads((tmp_path / "fused" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(before)
    assert len(set(index["weight_map"].values())) > 1
    load_model(tmp_path / "fused")


def test_experts_are_split_back(tmp_path):
    base = make_tiny("qwen3_moe", tmp_path / "base")
    stacked = dict(mx.load(str(base / "model.safetensors")))
    split = {}
    for name, array in stacked.items():
        if ".switch_mlp." in name:
            split |= {name.replace("switch_mlp", f"experts.{row}"): array[row] for row in range(array.shape[0])}
        else:
            split[name] = array
    mx.eval(split)
    (base / "model.safetensors").unlink()
    mx.save_safetensors(str(base / "model.safetensors"), split)
    adapter = make_adapter(tmp_path / "adapter", base)
    fuse(Base(str(base), adapter), tmp_path / "fused")
    assert set(raw(tmp_path / "fused")) == set(split)
    assert mx.abs(logits(tmp_path / "fused") - adapted(adapter)).max() < 1e-4


@pytest.fixture
def quantized(tmp_path):
    tiny = make_tiny("llama3", tmp_path / "tiny")
    model, tokenizer, config = mlx_lm.load(str(tiny), return_config=True)
    model, config = mlx_lm.utils.quantize_model(model, config, 32, 4)
    mlx_lm.utils.save(tmp_path / "q4", str(tiny), model, tokenizer, config)
    return tmp_path / "q4"


def test_a_packed_base(quantized, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", quantized)
    fuse(Base(str(quantized), adapter), tmp_path / "fused")
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & set(config)
    assert mx.abs(logits(tmp_path / "fused") - adapted(adapter)).max() < 1e-4
    again = fuse(Base(str(quantized), adapter), tmp_path / "packed", dequantize=False)
    assert 0 < again["error"] < 10
    assert set(raw(tmp_path / "packed")) == set(raw(quantized))
    assert mx.isfinite(logits(tmp_path / "packed")).all()


def test_an_adapter_of_another_base_and_an_output_that_is_there(tmp_path):
    base, other = make_tiny("llama3", tmp_path / "base"), make_tiny("llama3", tmp_path / "other", hidden_size=128)
    adapter = make_adapter(tmp_path / "adapter", base)
    with pytest.raises(ModelError, match=r"another base: .* \(64, 128\) where the base has \(128, 128\)"):
        fuse(Base(str(other), adapter), tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
    fuse(Base(str(base), adapter), tmp_path / "fused")
    with pytest.raises(ConfigError, match="--force"):
        fuse(Base(str(base), adapter), tmp_path / "fused")
    fuse(Base(str(base), adapter), tmp_path / "fused", force=True)
    with pytest.raises(ConfigError, match="made of"):
        fuse(Base(str(base), adapter), base, force=True)


def test_an_interrupt_leaves_nothing(tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fuse(Base(str(base), adapter), tmp_path / "fused", emit=stop)
    assert {one.name for one in tmp_path.iterdir()} == {"base", "adapter"}
