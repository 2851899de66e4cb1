"""``export peft``: what is written computes the same here and in PEFT, and what PEFT has no words for is refused."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from click.testing import CliRunner

from mlxforge.cli.export_peft import peft
from mlxforge.core.errors import ConfigError, MlxforgeError, ModelError
from mlxforge.export.peft import ROUTER, targets
from mlxforge.models.families import FAMILIES
from mlxforge.models.load import load
from mlxforge.models.lora import LINEAR, apply_adapter
from mlxforge.models.peft import OTHERWISE, hf_module
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.export_peft import export_peft
from mlxforge.runs.opening import Base, resolve_base

SCRIPTS = Path(__file__).parents[2] / "scripts"
TOKENS = [[5, 17, 300, 41, 9, 120, 7], [1, 2, 3, 500, 401, 77, 77]]
KINDS = ("lora", "rslora", "dora")


def logits(base: Path, *adapters: Path) -> mx.array:
    model = load(str(base), "float32").model
    for adapter in adapters:
        apply_adapter(model, adapter)
    return model(mx.array(TOKENS))


def off(one, other) -> float:
    return float(np.abs(np.array(one) - np.array(other)).max())


@pytest.mark.parametrize("family", ["llama3", "qwen3", "gemma3", "qwen3_5", "phi3", "lfm2_moe"])
@pytest.mark.parametrize("kind", KINDS)
def test_exported_and_imported_it_is_the_same(family, kind, hub_base, make_adapter, tmp_path):
    base = hub_base(family, tmp_path / "base")
    kept = {"lfm2_moe": ["q_proj", "feed_forward.up_proj"], "phi3": ["qkv_proj"]}.get(family, ["q_proj", "down_proj"])
    adapter = make_adapter(tmp_path / "adapter", base, kind=kind, targets=kept, alpha=6.0)
    result = export_peft(Base(str(base), adapter), tmp_path / "peft")
    assert result["kind"] == kind
    assert off(logits(base, tmp_path / "peft"), logits(base, adapter)) < 1e-5
    assert off(logits(base, adapter), logits(base)) > 1e-2
    # A picture model has layers of the same names: whole names keep them out.
    whole = all(name.startswith("model.language_model.layers.") for name in result["target_modules"])
    assert whole == (family == "gemma3")
    assert resolve_base(str(tmp_path / "peft"), tmp_path) == Base(str(base), tmp_path / "peft")


def test_the_words_of_peft(make_adapter, tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, kind="rslora", layers=1, targets=["q_proj"], alpha=6.0)
    export_peft(Base(str(base), adapter), tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    said = {"r": 4, "lora_alpha": 6, "use_rslora": True, "use_dora": False, "target_modules": ["q_proj"]}
    said |= {"layers_to_transform": [1], "base_model_name_or_path": str(base), "task_type": "CAUSAL_LM", "peft_type": "LORA"}
    assert said.items() <= config.items()
    weights = mx.load(str(tmp_path / "peft" / "adapter_model.safetensors"))
    stem = "base_model.model.model.layers.1.self_attn.q_proj"
    assert set(weights) == {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"}
    own = mx.load(str(adapter / "adapters.safetensors"))
    assert mx.array_equal(weights[f"{stem}.lora_A.weight"], own["model.layers.1.self_attn.q_proj.lora_a"].T)
    names = {file.name for file in (tmp_path / "peft").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert "config.json" not in names


def test_target_modules_hit_no_other_module():
    known = [f"model.layers.{layer}.{part}" for layer in range(3) for part in ("self_attn.q_proj", "mlp.up_proj")]
    vision = "vision.layers.1.self_attn.q_proj"
    assert targets(set(known[::2]), known)["target_modules"] == ["q_proj"]
    last = targets({known[4]}, known)
    assert (last["target_modules"], last["layers_to_transform"]) == (["q_proj"], [2])
    assert targets({known[4], known[1]}, known)["target_modules"] == [known[1], known[4]]
    assert targets(set(known[::2]), [*known, vision])["target_modules"] == known[::2]
    assert targets({known[2]}, [*known, vision])["target_modules"] == [known[2]]


def test_several_adapters_are_one(make_adapter, tmp_path):
    """What two adapters add to a layer, the exported one adds alone; its rank is the sum of theirs."""
    base = make_tiny("llama3", tmp_path / "base")
    first = make_adapter(tmp_path / "a", base, targets=["q_proj"])
    second = make_adapter(tmp_path / "b", base, seed=2, rank=3, targets=["q_proj", "up_proj"])
    result = export_peft(Base(str(base), second, None, (first,)), tmp_path / "peft")
    assert result["r"] == 7
    from mlxforge.export.fuse import open_source

    both, one = (open_source(base, *folders) for folders in ((first, second), (tmp_path / "peft",)))
    name = "model.layers.1.self_attn.q_proj.weight"
    assert off(both.rows(name), one.rows(name)) < 1e-5
    assert off(both.rows(name), open_source(base, second).rows(name)) > 1e-2


def test_what_peft_has_no_words_for(hub_base, make_adapter, tmp_path):
    llama, experts = make_tiny("llama3", tmp_path / "llama"), hub_base("qwen3_moe", tmp_path / "moe")
    cases = [
        (llama, {"kind": "full"}, "whole weights"),
        (experts, {}, "experts|router"),
        (experts, {"targets": ["gate"]}, "router"),
        (make_tiny("falcon_h1", tmp_path / "falcon"), {"targets": ["q_proj"]}, "falcon_h1's factors"),
    ]
    for number, (base, lora, words) in enumerate(cases):
        adapter = make_adapter(tmp_path / str(number), base, **lora)
        with pytest.raises(ModelError, match=words):
            export_peft(Base(str(base), adapter), tmp_path / "peft")
    other = make_tiny("llama3", tmp_path / "other", intermediate_size=64)
    with pytest.raises(ModelError, match="of another base"):
        export_peft(Base(str(other), make_adapter(tmp_path / "mine", llama)), tmp_path / "peft")
    with pytest.raises(ModelError, match="no adapter"):
        export_peft(Base("tiny"), tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_packed_base_needs_the_name_of_its_float_original(make_adapter, tmp_path):
    tiny = make_tiny("llama3", tmp_path / "tiny")
    model, tokenizer, config = mlx_lm.load(str(tiny), return_config=True)
    model, config = mlx_lm.utils.quantize_model(model, config, 32, 4)
    packed = tmp_path / "q4"
    mlx_lm.utils.save(packed, str(tiny), model, tokenizer, config)
    (packed / "README.md").unlink(missing_ok=True)
    base = Base(str(packed), make_adapter(tmp_path / "adapter", packed, kind="dora"))
    with pytest.raises(ModelError, match="--base ID"):
        export_peft(base, tmp_path / "peft")
    assert export_peft(base, tmp_path / "peft", named="org/float")["base"] == "org/float"
    assert off(logits(packed, tmp_path / "peft"), logits(packed, base.adapter)) < 1e-5
    (packed / "README.md").write_text("---\nbase_model: org/original\n---\n")
    assert export_peft(base, tmp_path / "peft", force=True)["base"] == "org/original"


def test_a_full_disk_is_said_and_leaves_nothing(make_adapter, tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    (tmp_path / "made").mkdir()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))  # bytes that a file may have
    try:
        with pytest.raises(MlxforgeError, match="out: cannot write"):
            export_peft(Base(str(base), adapter), tmp_path / "made" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list((tmp_path / "made").iterdir()) == []


def test_the_command(make_adapter, tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    (adapter / "chat_template.jinja").write_text("trained")
    words = ["--adapter", str(adapter), "-o", str(tmp_path / "peft")]
    done = CliRunner().invoke(peft, [*words, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["tensors"] == 28
    assert (tmp_path / "peft" / "chat_template.jinja").read_text() == "trained"
    assert "chat_template" not in json.loads((tmp_path / "peft" / "tokenizer_config.json").read_text())
    assert isinstance(CliRunner().invoke(peft, words).exception, ConfigError)
    assert "wrote" in CliRunner().invoke(peft, [*words, "--force"], catch_exceptions=False).stdout
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    done = CliRunner().invoke(peft, [*words[:2], "-o", str(tmp_path / "notes"), "--force"])
    assert isinstance(done.exception, ConfigError)
    assert (tmp_path / "notes" / "mine.txt").exists()


@pytest.fixture
def in_peft(monkeypatch, tmp_path):
    """Runs scripts/peft_logits.py in an environment with torch and peft, which is made once for all sessions."""
    monkeypatch.delenv("MLXFORGE_CACHE")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from bench_preference import environment

    def run(**work) -> None:
        (tmp_path / "jobs.json").write_text(json.dumps({"tokens": TOKENS} | work))
        words = [str(environment("TRL")), str(SCRIPTS / "peft_logits.py"), str(tmp_path / "jobs.json")]
        subprocess.run(words, check=True, capture_output=True, timeout=600)

    return run


def theirs(folder: Path) -> np.ndarray:
    assert (folder / "logits.npy").is_file(), f"{folder}: {(folder / 'logits.txt').read_text()}"
    return np.load(folder / "logits.npy")


@pytest.mark.slow
def test_peft_computes_the_same(hub_base, make_adapter, in_peft, tmp_path):
    jobs, own = [], {}
    for family in ("llama3", "qwen3", "gemma3_text", "mistral", "qwen3_5"):
        base = hub_base(family, tmp_path / family)
        for kind in KINDS:
            for layers in (None, 1):
                folder = tmp_path / f"{family}-{kind}-{layers}"
                adapter = make_adapter(tmp_path / "own" / folder.name, base, kind=kind, layers=layers)
                export_peft(Base(str(base), adapter), folder)
                own[folder] = (base, logits(base, adapter))
                jobs.append({"base": str(base), "adapter": str(folder)})
    in_peft(jobs=jobs)
    figures = {folder.name: off(theirs(folder), mine) for folder, (_, mine) in own.items()}
    print(json.dumps(figures, indent=1), file=sys.stderr)
    assert {name: figure for name, figure in figures.items() if not figure < 1e-4} == {}
    assert all(off(mine, logits(base)) > 1e-2 for base, mine in own.values())


@pytest.mark.slow
def test_adapters_that_peft_made_compute_the_same_here(hub_base, in_peft, tmp_path):
    linear = ["q_proj", "v_proj", "down_proj"]
    makes = {
        "lora": {"r": 4, "lora_alpha": 10, "target_modules": linear},
        "rslora": {"r": 4, "lora_alpha": 10, "use_rslora": True, "target_modules": "all-linear"},
        "dora": {"r": 4, "lora_alpha": 10, "use_dora": True, "target_modules": linear, "layers_to_transform": [0]},
        "patterns": {"r": 4, "target_modules": linear, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"layers.1.*v_proj": 3}},
        "head": {"r": 4, "target_modules": ["lm_head", "embed_tokens", "q_proj"]},
    }
    jobs = []
    for family in ("llama3", "qwen3", "qwen3_5"):
        # The head of the tiny qwen3_5 is named as in mlx-lm: transformers would not load it.
        base = hub_base(family, tmp_path / family, tie_word_embeddings=family == "qwen3_5")
        for name, make in makes.items():
            if (family, name) == ("qwen3_5", "head"):
                continue
            jobs.append({"base": str(base), "adapter": str(tmp_path / f"{family}-{name}"), "make": make})
    in_peft(jobs=jobs)
    figures = {}
    for job in jobs:
        base, folder = Path(job["base"]), Path(job["adapter"])
        figures[folder.name] = off(theirs(folder), logits(base, folder))
        assert off(logits(base, folder), logits(base)) > 1e-2
    print(json.dumps(figures, indent=1), file=sys.stderr)
    assert {name: figure for name, figure in figures.items() if not figure < 1e-4} == {}


@pytest.mark.slow
def test_the_names_are_those_of_transformers(in_peft, tmp_path):
    """Every linear layer that may be exported is one of transformers' own class, of the same shape."""
    wanted = {}
    for model_type in sorted({one for row in FAMILIES.values() for one in row.model_types} - set(OTHERWISE) - {"deepseek"}):
        model = load(str(make_tiny(model_type, tmp_path / model_type))).model
        wanted[model_type] = {
            hf_module(path, model_type): list(module.weight.shape)
            for path, module in model.named_modules()
            if isinstance(module, (*LINEAR, nn.Embedding)) and module.weight.ndim == 2 and not ROUTER.search(path)
        }
    in_peft(names=[str(tmp_path / model_type) for model_type in wanted])
    for model_type, names in wanted.items():
        file = tmp_path / model_type / "names.json"
        assert file.is_file(), f"{model_type}: {(tmp_path / model_type / 'names.txt').read_text()}"
        known = json.loads(file.read_text())
        assert {name: shape for name, shape in names.items() if known.get(name) != shape} == {}, model_type


def test_scales_are_kept(make_adapter, tmp_path):
    """alpha / r, or alpha / sqrt(r), is mlx-lm's scale, also where it is no round number."""
    base = make_tiny("llama3", tmp_path / "base")
    for kind in KINDS:
        adapter = make_adapter(tmp_path / kind, base, kind=kind, alpha=5.3, targets=["q_proj"])
        result = export_peft(Base(str(base), adapter), tmp_path / f"{kind}-peft")
        scale = json.loads((adapter / "adapter_config.json").read_text())["lora_parameters"]["scale"]
        root = math.sqrt(4) if kind == "rslora" else 4
        assert result["lora_alpha"] / root == pytest.approx(scale, rel=1e-12)
