"""A fused model computes what the adapter over its base computes, and nothing else of the base changes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.utils import load_model

from mlxforge import CptConfig, DpoConfig, SftConfig, train
from mlxforge.core.config import from_dict
from mlxforge.core.errors import ConfigError, MlxforgeError, ModelError
from mlxforge.export.source import Stored, metadata
from mlxforge.models.check import weight_files
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.fuse import fuse
from mlxforge.runs.opening import Base, open_model, subject

TOKENS = mx.array([[5, 17, 300, 41, 9, 120, 7]])
# The architectures that have a GGUF form.
ARCHITECTURES = """llama3 mistral qwen2 qwen3 qwen3_moe gemma2 gemma3_text phi3 olmo2 granite smollm3 qwen3_5 gemma mixtral
olmo3 granitemoe lfm2 seed_oss stablelm starcoder2 hunyuan_v1_dense""".split()
CASES = [(family, "lora") for family in (*ARCHITECTURES, "qwen3_5_moe")]
CASES += [(family, "full") for family in ("qwen3_moe", "mixtral", "granitemoe", "lfm2", "qwen3_5", "gemma3_text", "gemma3")]
CASES += [("llama3", kind) for kind in ("rslora", "dora", "full")] + [("phi3", "dora")]


def logits(folder: Path) -> mx.array:
    """By mlx-lm alone."""
    return load_model(folder)[0](TOKENS).astype(mx.float32)


def adapted(adapter: Path | str) -> mx.array:
    return open_model(str(adapter), Path(adapter).parent, "float32").loaded.model(TOKENS)


def off(one: mx.array, other: mx.array) -> float:
    return mx.abs(one - other).max().item()


def raw(folder: Path) -> dict[str, bytes]:
    stored = Stored(weight_files(folder))
    return {name: b"".join(stored.chunks(name)) for name in stored.entries}


def layout(folder: Path) -> dict[str, tuple]:
    return {name: (entry.dtype, entry.shape) for name, entry in Stored(weight_files(folder)).entries.items()}


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_logits_are_those_of_the_adapter(family, kind, hub_base, make_adapter, tmp_path):
    base = hub_base(family, tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, kind=kind)
    result = fuse(Base(str(base), adapter), tmp_path / "fused")
    assert result["kind"] == kind
    assert layout(tmp_path / "fused") == layout(base)
    assert off(logits(tmp_path / "fused"), adapted(adapter)) < 1e-4
    assert off(logits(tmp_path / "fused"), logits(base)) > 1e-2


def test_what_the_adapter_leaves_alone_is_the_same_bytes(make_adapter, tmp_path):
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
    # A sharded base keeps its shards, and what its files say of themselves.
    again = tmp_path / "fused"
    file = sorted(again.glob("*.safetensors"))[0]
    mx.save_safetensors(str(again / "new.safetensors"), dict(mx.load(str(file))), {"format": "pt", "made": "by hand"})
    (again / "new.safetensors").rename(file)
    fuse(Base(str(again), adapter), tmp_path / "twice")
    assert sorted(one.name for one in again.iterdir()) == sorted(one.name for one in (tmp_path / "twice").iterdir())
    assert json.loads((tmp_path / "twice" / "model.safetensors.index.json").read_text()) == index
    assert metadata(tmp_path / "twice" / file.name) == {"format": "pt", "made": "by hand"}


def packed(tmp_path, dtype="float32", bits=4, mode="affine"):
    tiny = make_tiny("llama3", tmp_path / f"tiny-{dtype}-{mode}", dtype=dtype)
    model, tokenizer, config = mlx_lm.load(str(tiny), return_config=True)
    model, config = mlx_lm.utils.quantize_model(model, config, 32, bits, mode=mode)
    folder = tmp_path / f"packed-{dtype}-{mode}"
    mlx_lm.utils.save(folder, str(tiny), model, tokenizer, config)
    return folder


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("float16", 5e-3)])
def test_a_packed_base(dtype, bound, make_adapter, tmp_path):
    base = packed(tmp_path, dtype)
    file = base / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"text_config": {"quantization": config["quantization"]}}))
    adapter = make_adapter(tmp_path / "adapter", base, targets=["q_proj", "up_proj"])
    fuse(Base(str(base), adapter), tmp_path / "fused")
    assert "quantization" not in (tmp_path / "fused" / "config.json").read_text()
    assert off(logits(tmp_path / "fused"), adapted(adapter)) < bound
    again = fuse(Base(str(base), adapter), tmp_path / "packed", dequantize=False)
    before, after = raw(base), raw(tmp_path / "packed")
    assert 0 < again["error"] < 10
    assert layout(tmp_path / "packed") == layout(base)
    assert all(("q_proj" in name or "up_proj" in name) for name in before if before[name] != after[name])
    assert mx.isfinite(logits(tmp_path / "packed")).all()
    with pytest.raises(ConfigError, match="not packed"):
        fuse(Base(str(tmp_path / "fused"), adapter), tmp_path / "no", dequantize=False)


def test_adapters_of_another_base_or_of_no_sense(make_adapter, tmp_path):
    base, other = make_tiny("llama3", tmp_path / "base"), make_tiny("llama3", tmp_path / "other", hidden_size=128)
    adapter = make_adapter(tmp_path / "adapter", base)
    with pytest.raises(ModelError, match=r"another base: .* \(64, 128\) where the base has \(128, 128\)"):
        fuse(Base(str(other), adapter), tmp_path / "fused")
    weights, name = dict(mx.load(str(adapter / "adapters.safetensors"))), "model.layers.0.mlp.up_proj.lora_a"
    mx.eval(weights)
    for change, said in {
        "model.layers.0.mlp.up_proj.lora_c": "no part of a lora update",
        name: "of unfitting parts where the base has",
        "model.layers.0.mlp.nothing.lora_a": "nothing.lora_b' is missing",
    }.items():
        mx.save_safetensors(str(adapter / "adapters.safetensors"), weights | {change: mx.zeros((3,))})
        with pytest.raises(ModelError, match=said):
            fuse(Base(str(base), adapter), tmp_path / "fused")
    mx.save_safetensors(str(adapter / "adapters.safetensors"), weights)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for settings, said in (({"lora_parameters": {"scale": "two"}}, "not a number"), ({"fine_tune_type": "vera"}, "'vera'")):
        (adapter / "adapter_config.json").write_text(json.dumps(config | settings))
        with pytest.raises(ModelError, match=said):
            fuse(Base(str(base), adapter), tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_an_output_that_is_there_a_disk_that_is_full_a_tokenizer_that_is_not(make_adapter, monkeypatch, tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, targets=["q_proj"])
    fuse(Base(str(base), adapter), tmp_path / "fused")
    with pytest.raises(ConfigError, match="--force"):
        fuse(Base(str(base), adapter), tmp_path / "fused")
    fuse(Base(str(base), adapter), tmp_path / "fused", force=True)
    with pytest.raises(ConfigError, match="made of"):
        fuse(Base(str(base), adapter), base, force=True)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(MlxforgeError, match=r"the model takes 0 MB and 67 stay free, but there are 0 MB"):
            fuse(Base(str(base), adapter), tmp_path / "full")
    (base / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        fuse(Base(str(base), adapter), tmp_path / "full")
    assert {one.name for one in tmp_path.iterdir()} == {"base", "adapter", "fused"}


def test_an_interrupt_leaves_nothing(make_adapter, tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fuse(Base(str(base), adapter), tmp_path / "fused", emit=stop)
    assert {one.name for one in tmp_path.iterdir()} == {"base", "adapter"}


def test_three_runs_over_each_other_become_one_model(documents, tmp_path):
    """Continued pretraining, then answers, then preferences: the last run's logits, of one folder."""
    pair = [{"prompt": f"What is {i}?", "chosen": "Good flour.", "rejected": "I do not know."} for i in range(6)]
    chat = [
        {"messages": [{"role": "user", "content": f"Who is {i}?"}, {"role": "assistant", "content": "Me."}]} for i in range(6)
    ]
    for name, rows in (("pairs", pair), ("chats", chat)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = tmp_path / "runs"
    small = {"runs_dir": str(runs), "steps": 2, "max_length": 96, "batch_tokens": 256, "warmup": 0, "sample_tokens": 0}
    small |= {"learning_rate": 1e-2, "lora": {"rank": 4}}
    base = make_tiny("qwen3", tmp_path / "base")
    chain = ((CptConfig, documents, str(base)), (SftConfig, tmp_path / "chats.jsonl", "run:0"))
    for number, (kind, data, model) in enumerate((*chain, (DpoConfig, tmp_path / "pairs.jsonl", "run:1"))):
        if model.startswith("run:"):
            model = f"run:{runs / model.removeprefix('run:')}"
        train(from_dict(kind, small | {"data": [str(data)], "name": str(number), "model": model}))
    fuse(subject("2", None, None, runs), tmp_path / "fused")
    last = logits(tmp_path / "fused")
    assert off(last, adapted(runs / "2")) < 1e-4
    assert min(off(last, adapted(runs / name)) for name in ("0", "1")) > 1e-3
    with pytest.raises(ModelError, match="holds the runs below it already"):
        subject(None, str(base), [runs / "0", runs / "1"], runs)


def test_several_adapters_are_merged_in_order(make_adapter, tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    first = make_adapter(tmp_path / "first", base)
    fuse(Base(str(base), first), tmp_path / "one")
    second = make_adapter(tmp_path / "second", tmp_path / "one", kind="dora", seed=2)
    fuse(Base(str(tmp_path / "one"), second), tmp_path / "two")
    result = fuse(subject(None, str(base), [first, second], tmp_path), tmp_path / "both")
    assert result["kind"] == "lora + dora"
    both, swapped = Stored(weight_files(tmp_path / "both")), tmp_path / "swapped"
    two = Stored(weight_files(tmp_path / "two"))
    assert all(np.allclose(both.rows(name), two.rows(name), atol=1e-6) for name in two.entries)
    fuse(subject(None, str(base), [second, first], tmp_path), swapped)
    assert off(logits(swapped), logits(tmp_path / "two")) > 1e-3


def test_a_head_beside_the_embedding_it_is_tied_to_changes_with_it(make_adapter, tmp_path):
    base = make_tiny("qwen3", tmp_path / "base")
    file = base / "model.safetensors"
    weights = dict(mx.load(str(file)))
    mx.eval(weights)
    mx.save_safetensors(str(file), weights | {"lm_head.weight": weights["model.embed_tokens.weight"] * 1})
    adapter = make_adapter(tmp_path / "adapter", base, kind="full")
    fuse(Base(str(base), adapter), tmp_path / "fused")
    after = raw(tmp_path / "fused")
    assert after["lm_head.weight"] == after["model.embed_tokens.weight"] != raw(base)["lm_head.weight"]


PEAK = """
import resource, sys
from pathlib import Path
from mlxforge.runs.fuse import fuse
from mlxforge.runs.opening import Base
from mlxforge.core.blas import load_blas
load_blas()
import mlxforge.export.fuse, mlx_lm.models.llama, mlx_lm.models.qwen3_moe
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fuse(Base(sys.argv[1], Path(sys.argv[2])), Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


LARGE = "model.layers.0.mlp.gate_proj"


def with_a_large_layer(base: Path, rows: int) -> None:
    """Its gate becomes (rows, 64) zeros in bfloat16, in a file with a hole; nothing reads the model as a whole here."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"intermediate_size": rows}))
    stored = Stored(weight_files(base))
    header, data = {}, b""
    for name, entry in stored.entries.items():
        if name != f"{LARGE}.weight":
            more = data + b"".join(stored.chunks(name))
            header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [len(data), len(more)]}
            data = more
    size = len(data) + 128 * rows
    header[f"{LARGE}.weight"] = {"dtype": "BF16", "shape": [rows, 64], "data_offsets": [len(data), size]}
    text = json.dumps(header).encode()
    with open(base / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
        file.truncate(8 + len(text) + size)


def test_the_memory_is_that_of_a_block(make_adapter, tmp_path):
    """One tensor is 64 MB in bfloat16, 128 MB in float32, and so is its update."""
    base = make_tiny("llama3", tmp_path / "base", num_hidden_layers=1)
    adapter, rows = make_adapter(tmp_path / "adapter", base), 1 << 19
    with_a_large_layer(base, rows)
    update = {f"{LARGE}.lora_a": mx.ones((64, 2)), f"{LARGE}.lora_b": mx.ones((2, rows))}
    mx.save_safetensors(str(adapter / "adapters.safetensors"), update)
    words = [sys.executable, "-c", PEAK, str(base), str(adapter), str(tmp_path / "fused")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) * (1 if sys.platform == "darwin" else 1024) < 80e6, done.stdout
    assert Stored(weight_files(tmp_path / "fused")).rows(f"{LARGE}.weight", rows - 1).min() == 32


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_kill_leaves_nothing(number, make_adapter, tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, targets=["q_proj"])
    with_a_large_layer(base, 1 << 22)
    begun = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from mlxforge.cli.main import main; main()"
    )
    words = ["fuse", "--model", str(base), "--adapter", str(adapter), "-o", str(tmp_path / "fused")]
    process = subprocess.Popen([sys.executable, "-c", begun, *words], stderr=subprocess.PIPE, text=True)
    until = time.time() + 60
    while not list(tmp_path.glob(".fused.*/*.safetensors")):
        assert time.time() < until
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert {one.name for one in tmp_path.iterdir()} == {"base", "adapter"}


def test_what_the_type_cannot_hold_is_refused(make_adapter, tmp_path):
    base = make_tiny("llama3", tmp_path / "base", dtype="float16")
    adapter = make_adapter(tmp_path / "adapter", base, targets=["q_proj"])
    for alpha, dtype in ((1e9, "F16"), (float("nan"), "number")):
        config = json.loads((adapter / "adapter_config.json").read_text())
        config["lora_parameters"]["scale"] = alpha
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=dtype):
            fuse(Base(str(base), adapter), tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
