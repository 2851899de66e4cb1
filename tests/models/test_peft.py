"""Adapters in PEFT's format: what they compute here, and what is refused, by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mlx.core as mx
import pytest

from mlxforge import SftConfig, train
from mlxforge.core.config import from_dict
from mlxforge.core.errors import ModelError
from mlxforge.models.adapters import adapter_file, is_peft
from mlxforge.models.load import load
from mlxforge.models.lora import apply_adapter, read_adapter
from mlxforge.models.peft import hf_module, mlx_path
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.fuse import fuse
from mlxforge.runs.opening import Base, open_model, resolve_base, subject

TOKENS = mx.array([[5, 17, 300, 41, 9, 120, 7]])
Q = "base_model.model.model.layers.{}.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny("llama3", tmp_path_factory.mktemp("base") / "llama", tie_word_embeddings=False)


def write(folder: Path, weights: dict[str, mx.array], base: Path | None = None, **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), weights)
    config = CONFIG | {"base_model_name_or_path": str(base) if base else None} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def pair(module: str, rank: int = 2, out: int = 64, width: int = 64, seed: int = 0) -> dict[str, mx.array]:
    mx.random.seed(seed)
    a, b = 0.2 * mx.random.normal((rank, width)), 0.2 * mx.random.normal((out, rank))
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def changed(base: Path, deltas: dict[str, mx.array]) -> mx.array:
    """Logits of the base with whole matrices added to its weights."""
    model = load(str(base), "float32").model
    own = {name: array for name, array in mx.load(str(base / "model.safetensors")).items() if name in deltas}
    model.load_weights([(name, array + deltas[name]) for name, array in own.items()], strict=False)
    return model(TOKENS)


def with_adapter(base: Path, adapter: Path) -> mx.array:
    model = load(str(base), "float32").model
    apply_adapter(model, adapter)
    return model(TOKENS)


def test_ranks_and_alphas_that_differ_from_layer_to_layer(base, tmp_path):
    """The second layer has rank 3 and alpha 9 by pattern, the first the default: B A times alpha / r each."""
    first, second = pair(Q.format(0)), pair(Q.format(1), rank=3, seed=1)
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 3}, "alpha_pattern": {r"layers\.1\..*": 9}}
    adapter = write(tmp_path / "a", first | second, **patterns)
    deltas = {
        f"model.layers.{index}.self_attn.q_proj.weight": scale * b @ a
        for index, scale, (a, b) in ((0, 6 / 2, first.values()), (1, 9 / 3, second.values()))
    }
    assert mx.abs(with_adapter(base, adapter) - changed(base, deltas)).max() < 1e-4
    weights, config = read_adapter(
        write(tmp_path / "b", first | second, **patterns | {"use_rslora": True}), load(str(base)).model
    )
    assert config["lora_parameters"]["scale"] == 1.0
    expected = 9 / math.sqrt(3) * second[f"{Q.format(1)}.lora_B.weight"].T
    assert mx.allclose(weights["model.layers.1.self_attn.q_proj.lora_b"], expected, atol=1e-6)


def test_layers_without_an_update_stay_as_they_are(base, tmp_path):
    only = pair(Q.format(0)) | pair("base_model.model.model.layers.1.mlp.up_proj", out=128)
    adapter = write(tmp_path / "a", only)
    a, b, c, d = only.values()
    deltas = {"model.layers.0.self_attn.q_proj.weight": 3 * b @ a, "model.layers.1.mlp.up_proj.weight": 3 * d @ c}
    assert mx.abs(with_adapter(base, adapter) - changed(base, deltas)).max() < 1e-4


def test_head_and_embedding(base, tmp_path):
    head = pair("base_model.model.lm_head", out=512)
    mx.random.seed(3)
    rows, dims = mx.random.normal((2, 512)), mx.random.normal((64, 2))
    stem = "base_model.model.model.embed_tokens"
    own = mx.load(str(base / "model.safetensors"))
    weights = head | {f"{stem}.lora_embedding_A": rows, f"{stem}.lora_embedding_B": dims}
    weights |= {f"{stem}.base_layer.weight": own["model.embed_tokens.weight"]}
    a, b = head.values()
    deltas = {"lm_head.weight": 3 * b @ a, "model.embed_tokens.weight": 3 * rows.T @ dims.T}
    assert mx.abs(with_adapter(base, write(tmp_path / "a", weights)) - changed(base, deltas)).max() < 1e-3
    weights[f"{stem}.base_layer.weight"] = own["model.embed_tokens.weight"] + 1
    with pytest.raises(ModelError, match=r"base_layer.*is no update"):
        with_adapter(base, write(tmp_path / "b", weights))


def test_an_embedding_that_is_the_head_too_is_refused(tmp_path):
    tied = make_tiny("llama3", tmp_path / "tied")
    stem = "base_model.model.model.embed_tokens"
    weights = {f"{stem}.lora_embedding_A": mx.ones((2, 512)), f"{stem}.lora_embedding_B": mx.ones((64, 2))}
    with pytest.raises(ModelError, match="output head too"):
        with_adapter(tied, write(tmp_path / "a", weights))


def test_it_is_taken_wherever_an_adapter_is(base, tmp_path):
    adapter = write(tmp_path / "a", pair(Q.format(1)), base)
    expected = with_adapter(base, adapter)
    assert resolve_base(str(adapter), tmp_path) == Base(str(base), adapter)
    assert subject(None, "tiny", [adapter], tmp_path) == Base("tiny", adapter)
    assert mx.array_equal(open_model(str(adapter), tmp_path, "float32").loaded.model(TOKENS), expected)
    fuse(Base(str(base), adapter), tmp_path / "fused")
    assert mx.abs(load(str(tmp_path / "fused"), "float32").model(TOKENS) - expected).max() < 1e-4


def test_one_of_another_base_is_refused(base, tmp_path):
    cases = {
        "layers.7.self_attn.q_proj is no layer of the base": pair(Q.format(7)),
        "maps 48 to 64 where the base has 64 to 64": pair(Q.format(0), width=48),
        "are experts in one tensor": pair("base_model.model.model.layers.0.mlp.experts.3.up_proj"),
        "has lora_a where": {f"{Q.format(0)}.lora_A.weight": mx.ones((2, 64))},
        "is no update of low rank": {f"{Q.format(0)}.bias": mx.ones(64)},
        "is empty": {},
    }
    for number, (words, weights) in enumerate(cases.items()):
        with pytest.raises(ModelError, match=words):
            with_adapter(base, write(tmp_path / str(number), weights))
    with pytest.raises(ModelError, match="have rank 3"):
        with_adapter(base, write(tmp_path / "rank", pair(Q.format(0), rank=3)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "LOHA"),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("target_parameters", ["mlp.experts.up_proj"]),
        ("init_lora_weights", "pissa"),
        ("trainable_token_indices", [1]),
        ("a_key_of_tomorrow", 2),
        ("lora_alpha", None),
        ("rank_pattern", {"q_proj(": 2}),
        ("alpha_pattern", {"q_proj": "much"}),
    ],
)
def test_what_cannot_be_read_is_named(key, value, base, tmp_path):
    with pytest.raises(ModelError, match=key):
        with_adapter(base, write(tmp_path / "a", pair(Q.format(0)), **{key: value}))


def test_a_pickle_is_refused(base, tmp_path):
    adapter = write(tmp_path / "a", pair(Q.format(0)))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert is_peft(adapter)
    with pytest.raises(ModelError, match="pickle"):
        adapter_file(adapter)
    with pytest.raises(ModelError, match="pickle"):
        with_adapter(base, adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        adapter_file(adapter)


def test_names_of_wrapped_models(tmp_path):
    for family, theirs in (("gemma3", "model.language_model."), ("qwen3_5", "model."), ("llama3", "model.")):
        model = load(str(make_tiny(family, tmp_path / family))).model
        own = next(path for path, _ in model.named_modules() if path.endswith("layers.1.mlp.up_proj"))
        assert hf_module(own, model.model_type) == f"{theirs}layers.1.mlp.up_proj"
        for prefix in ("model.", "model.language_model.", "language_model.model."):
            assert mlx_path(f"{prefix}layers.1.mlp.up_proj", model) == own
        assert mlx_path("model.vision_tower.encoder.layers.1.mlp.up_proj", model) != own


def test_a_run_over_it_is_one_adapter_of_its_base(base, tmp_path):
    """Two updates of PEFT's adapter and the run's are one, over the base and not over the folder that --model named."""
    rows = [{"messages": [{"role": "user", "content": f"Who {i}?"}, {"role": "assistant", "content": "Me."}]} for i in range(6)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = pair(Q.format(1)) | pair(Q.format(0), seed=1)
    adapter = write(tmp_path / "a", {name: 0.1 * array for name, array in weights.items()}, base)
    settings = {
        "model": str(adapter),
        "data": [str(tmp_path / "chats.jsonl")],
        "runs_dir": str(tmp_path / "runs"),
        "name": "over",
    }
    settings |= {"steps": 1, "warmup": 0, "sample_tokens": 0, "learning_rate": 1e-9, "lora": {"rank": 4}}
    run = train(from_dict(SftConfig, settings)).path
    assert resolve_base(str(run), tmp_path) == Base(str(base), run, run)
    assert mx.abs(open_model(str(run), tmp_path, "float32").loaded.model(TOKENS) - with_adapter(base, adapter)).max() < 1e-3
    on = train(from_dict(SftConfig, settings | {"model": str(base), "adapter": str(adapter), "name": "on"})).path
    assert "sparse" not in json.loads((on / "adapter_config.json").read_text())
    assert mx.abs(open_model(str(on), tmp_path, "float32").loaded.model(TOKENS) - with_adapter(base, adapter)).max() < 1e-3
