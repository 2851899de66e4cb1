"""A GGUF file's tensors and hyperparameters: in llama.cpp's own hands, and by their laws."""

from __future__ import annotations

from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import TokenType
from mlx_lm.utils import load_model

from mlxforge.core.errors import ModelError
from mlxforge.export import tensors as tensors_module
from mlxforge.export.architectures import EXPORTABLE
from mlxforge.export.layout import layout, left_out, metadata
from mlxforge.export.llama import LlamaCpp
from mlxforge.export.source import Entry, FolderSource, widened
from mlxforge.models.tiny import make_tiny

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"type": "linear", "factor": 4.0}
LONG = {"type": "longrope", "long_factor": [1.0 + i / 8 for i in range(4)], "short_factor": [1.0] * 4}
BIASES = {"attention_bias": True, "mlp_bias": True}
OWN_HEAD = {"tie_word_embeddings": False}
WIDE = {"head_dim": 32}  # other than hidden_size / heads
SIXTH = {**WIDE, "query_pre_attn_scalar": 32, "sliding_window_pattern": 6, "num_hidden_layers": 6}
# What llama.cpp wants of a family, and what else of config.json changes the file.
NEEDS = {
    "llama": {**WIDE, **BIASES, **OWN_HEAD, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}},
    "mistral": {**WIDE, "rope_scaling": LINEAR},
    "qwen3": {**WIDE, **OWN_HEAD, "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3}},
    "qwen3_moe": {**WIDE, **OWN_HEAD},
    "qwen3_5": {"linear_num_value_heads": 6, **OWN_HEAD},
    "gemma": WIDE,
    "gemma2": {**WIDE, "query_pre_attn_scalar": 32},
    "gemma3": SIXTH,
    "gemma3_text": {**SIXTH, "rope_scaling": LINEAR, "rope_local_base_freq": 500.0},
    "phi3": {
        "rope_scaling": LONG,
        "original_max_position_embeddings": 1024,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.5,
    },
    "olmo3": {"rope_scaling": YARN, "tie_word_embeddings": True},
    "granite": {**BIASES, "logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "granitemoe": {"attention_bias": True},
    "smollm3": {**WIDE, "no_rope_layer_interval": 4, "num_hidden_layers": 4},
    "seed_oss": {**WIDE, "attention_bias": True, "attention_out_bias": False},
    "stablelm": {"qk_layernorm": True, "use_qkv_bias": True},
    "hunyuan_v1_dense": {**WIDE, "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0}},
}
VARIANTS = {
    "llama": {"rope_scaling": YARN},
    "stablelm": {"use_parallel_residual": True, "qk_layernorm": False, "use_qkv_bias": False},
    "qwen3_5": {"linear_num_value_heads": 2},
    "olmo2": OWN_HEAD,
    "phi3": {"rope_scaling": {"type": "linear", "factor": 2.0, "long_factor": []}, "partial_rotary_factor": 1.0, **OWN_HEAD},
    "granite": {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}, **OWN_HEAD},
}
PROMPTS = ([7], [int(i) for i in np.random.default_rng(0).integers(40, 500, 24)])


def make(folder: Path, family: str, **options) -> Path:
    return make_tiny(family, folder, **{**NEEDS.get(family, {}), **options})


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Every exportable family, tiny, in mlx-lm's layout."""
    folder = tmp_path_factory.mktemp("bases")
    return {family: make(folder / family, family) for family in EXPORTABLE}


def values(tensor, source) -> np.ndarray:
    return np.concatenate(list(tensor.blocks(source))).reshape(tensor.shape)


def write(file: Path, source, change=lambda tensor, array: array) -> Path:
    """A float32 GGUF by gguf's own writer, with a vocabulary of names."""
    writer = gguf.GGUFWriter(str(file), EXPORTABLE[source.config["model_type"]].name)
    for key, value, kind in metadata(source):
        if key != "general.architecture":
            writer.add_key_value(key, value, kind)
    tokens = [f"<{i}>" for i in range(layout(source)[0].shape[0])]
    tokens[30] = "a"
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL if token == "a" else TokenType.USER_DEFINED for token in tokens])
    writer.add_token_merges(["a a"])
    for tensor in layout(source):
        writer.add_tensor(tensor.name, change(tensor, values(tensor, source)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def distance(file: Path, base: Path) -> tuple[float, float]:
    """(largest difference of a log-probability, largest KL in nats) between llama.cpp and mlx-lm in float32."""
    model, _ = load_model(base)
    worst = divergence = 0.0
    with LlamaCpp(file, context=512) as llama:
        for prompt in PROMPTS:
            logits = np.array(model(mx.array([prompt]))[0, -1], np.float64)
            wanted = logits - np.log(np.exp(logits).sum())
            ids, found = llama.logprobs(prompt, len(wanted))
            assert sorted(ids) == list(range(len(wanted)))
            worst = max(worst, float(np.abs(wanted[ids] - found).max()))
            found = found.astype(np.float64) - np.log(np.exp(found.astype(np.float64)).sum())
            divergence = max(divergence, float((np.exp(wanted[ids]) * (wanted[ids] - found)).sum()))
    return worst, divergence


# llama.cpp looks GELU up in a table of half precision on the CPU; all else is float32 to the end.
GELU = ("gemma", "gemma2", "gemma3", "gemma3_text", "starcoder2")


def check(file: Path, base: Path, family: str) -> None:
    worst, divergence = distance(file, base)
    assert worst < (0.05 if family in GELU else 0.001)
    assert divergence < (1e-5 if family in GELU else 1e-8)


@pytest.mark.parametrize("family", EXPORTABLE)
def test_llama_cpp_computes_what_mlx_does(family, bases, tmp_path):
    check(write(tmp_path / "m.gguf", FolderSource(bases[family])), bases[family], family)


@pytest.mark.slow
@pytest.mark.parametrize("family", VARIANTS)
def test_llama_cpp_computes_what_mlx_does_of_a_variant(family, tmp_path):
    base = make(tmp_path / "base", family, **VARIANTS[family])
    check(write(tmp_path / "m.gguf", FolderSource(base)), base, family)


def unpermuted(tensor, array):
    return array[np.argsort(tensors_module.interleaved(len(array), tensor.options))] if tensor.op == "interleaved" else array


def unshifted(tensor, array):
    return array - 1 if tensor.op == "plus_one" else array


def ungrouped(tensor, array):
    return array[np.argsort(tensors_module.tiled(len(array), tensor.options))] if tensor.op == "tiled_rows" else array


@pytest.mark.parametrize(("family", "mistake"), [("llama", unpermuted), ("gemma3", unshifted), ("qwen3_5", ungrouped)])
def test_a_mistake_shows_in_llama_cpp(family, mistake, bases, tmp_path):
    worst, divergence = distance(write(tmp_path / "m.gguf", FolderSource(bases[family]), mistake), bases[family])
    assert worst > 0.05
    assert divergence > 1e-4


@pytest.mark.parametrize("family", EXPORTABLE)
def test_restored_blocks_are_the_stored_tensors(family, tmp_path, hub_base, monkeypatch):
    source = FolderSource(hub_base(family, tmp_path / "base", **NEEDS.get(family, {})))
    whole = {tensor.name: values(tensor, source) for tensor in layout(source)}
    monkeypatch.setattr(tensors_module, "BLOCK", 1000)
    restored: dict[str, np.ndarray] = {}
    for tensor in layout(source):
        blocks = list(tensor.blocks(source))
        assert all(block.dtype == np.float32 and block.flags.c_contiguous for block in blocks)
        assert max(block.size for block in blocks) <= max(1000, tensor.shape[-1])
        array = np.concatenate(blocks).reshape(tensor.shape)
        np.testing.assert_array_equal(array, whole[tensor.name])
        tensor.restore(array, restored)
    assert set(restored) == set(source.entries) - set(left_out(source))
    for name, array in restored.items():
        np.testing.assert_allclose(array, source.rows(name), rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "granitemoe", "lfm2", "qwen3_5"])
def test_the_hubs_layout_and_mlx_lms_make_the_same_file(family, bases, tmp_path, hub_base):
    ours, hub = FolderSource(bases[family]), FolderSource(hub_base(family, tmp_path / "base", **NEEDS.get(family, {})))
    assert set(ours.entries) != set(hub.entries) or family == "lfm2"
    same_file(ours, hub)


def same_file(ours, hub) -> None:
    assert metadata(ours) == metadata(hub)
    assert [(one.name, one.shape, one.keep32) for one in layout(ours)] == [
        (one.name, one.shape, one.keep32) for one in layout(hub)
    ]
    for one, other in zip(layout(ours), layout(hub), strict=True):
        np.testing.assert_allclose(values(one, ours), values(other, hub), rtol=1e-6, atol=1e-7, err_msg=one.name)


def renamed(source, old: str, new: str) -> None:
    for name in [name for name in source.entries if name.startswith(old)]:
        source.entries[name.replace(old, new, 1)] = source.entries.pop(name)
        source.files[name.replace(old, new, 1)] = source.files.pop(name)


def test_prefixes_of_models_that_see_do_not_matter(bases):
    ours, hub = FolderSource(bases["gemma3"]), FolderSource(bases["gemma3"])
    renamed(hub, "language_model.model.", "model.language_model.")
    same_file(ours, hub)


def test_what_is_left_out_is_named(bases):
    source = FolderSource(bases["gemma3"])
    names = ["vision_tower.blocks.0.weight", "multi_modal_projector.mm_input_projection_weight"]
    add(source, *names)
    assert list(left_out(source)) == names
    assert left_out(source)[names[0]] == "vision tower"
    source = FolderSource(bases["mistral"])
    add(source, "lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")
    assert len(left_out(source)) == 2
    assert "output.weight" not in [tensor.name for tensor in layout(source)]


def test_a_head_is_used_where_config_says_nothing_of_it(bases):
    untied, tied = FolderSource(bases["llama"]), FolderSource(bases["starcoder2"])
    for source in (untied, tied):
        del source.config["tie_word_embeddings"]
    assert "output.weight" in [tensor.name for tensor in layout(untied)]
    assert "output.weight" not in [tensor.name for tensor in layout(tied)]


def test_a_tied_head_is_written_twice_where_llama_cpp_wants_one(bases):
    tensors = {tensor.name: tensor for tensor in layout(FolderSource(bases["olmo2"]))}
    assert tensors["output.weight"].sources == tensors["token_embd.weight"].sources


def add(source, *names: str, shape: tuple[int, ...] = (512, 64)) -> None:
    source.entries.update({name: Entry(name, "F32", shape) for name in names})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_values_are_those_in_float32(dtype, tmp_path):
    source = FolderSource(make(tmp_path / "base", "llama", dtype=dtype))
    for tensor in layout(source):
        blocks = list(tensor.blocks(source, stored=True))
        if tensor.name == "blk.0.attn_q.weight":  # permuted
            assert {block.dtype.name for block in blocks} == {{"float16": "float16", "bfloat16": "uint16"}[dtype]}
        wide = np.concatenate([widened(block, "BF16" if block.dtype == np.uint16 else "F32") for block in blocks])
        assert np.array_equal(wide.reshape(tensor.shape), values(tensor, source)), tensor.name


def test_experts_follow_one_another(tmp_path, hub_base):
    source = FolderSource(hub_base("mixtral", tmp_path / "base"))
    experts = next(tensor for tensor in layout(source) if tensor.name == "blk.1.ffn_down_exps.weight")
    assert experts.sources[:2] == tuple(f"model.layers.1.block_sparse_moe.experts.{i}.w2.weight" for i in (0, 1))
    assert np.array_equal(values(experts, source)[1], source.rows(experts.sources[1]))


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_rows_in_another_order_are_read_once(family, bases, monkeypatch):
    source, read = FolderSource(bases[family]), []
    rows = source.rows
    monkeypatch.setattr(source, "rows", lambda name, start, stop: read.append((name, stop - start)) or rows(name, start, stop))
    monkeypatch.setattr(tensors_module, "BLOCK", 1000)
    for tensor in layout(source):
        read.clear()
        list(tensor.blocks(source))
        assert sum(count for _, count in read) <= 2 * sum(stored[0] for stored in tensor.stored)


def test_orders_by_hand():
    assert tensors_module.interleaved(8, (2,)).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert tensors_module.tiled(4, (2, 4)).tolist() == [0, 2, 1, 3]
    assert tensors_module.tiled(8, (2, 4)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert tensors_module.tiled(7, (2, 4, 1)).tolist() == [0, 1, 2, 3, 5, 4, 6]


def test_the_file_of_a_llama(bases):
    source = FolderSource(bases["llama"])
    names = [tensor.name for tensor in layout(source)]
    assert names[:4] == ["token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"]
    assert names[4].startswith("blk.0.attn_norm")
    keep32 = {tensor.name for tensor in layout(source) if tensor.keep32}
    assert {"blk.0.ffn_norm.weight", "blk.0.attn_q.bias", "rope_freqs.weight"} < keep32
    assert "blk.0.attn_q.weight" not in keep32
    keys = {key: value for key, value, _ in metadata(source)}
    assert keys["general.architecture"] == "llama"
    assert keys["llama.attention.key_length"] == keys["llama.rope.dimension_count"] == 32
    assert keys["llama.attention.head_count_kv"] == 2
    assert keys["llama.vocab_size"] == 512


def test_transformers_new_form_of_the_rope_is_the_old_one(bases):
    old, new = FolderSource(bases["llama"]), FolderSource(bases["llama"])
    scaling, theta = new.config.pop("rope_scaling"), new.config.pop("rope_theta")
    new.config["rope_parameters"] = {**scaling, "rope_theta": theta}
    same_file(old, new)
    local = FolderSource(bases["gemma3_text"])
    scaling = local.config.pop("rope_scaling")
    wanted = metadata(FolderSource(bases["gemma3_text"]))
    full = {"rope_type": scaling["type"], "factor": scaling["factor"], "rope_theta": local.config.pop("rope_theta")}
    sliding = {"rope_type": "default", "rope_theta": local.config.pop("rope_local_base_freq")}
    local.config["rope_parameters"] = {"full_attention": full, "sliding_attention": sliding}
    assert metadata(local) == wanted


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("gemma3", {"sliding_window_pattern": 2}, "sliding windows other than in five layers of six"),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, "sliding windows"),
        ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar other than 32"),
        ("smollm3", {"no_rope_layer_interval": 2}, "layers without rope other than every fourth"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("llama", {"layer_types": ["sliding_attention", "full_attention"]}, "sliding attention"),
        ("llama", {"rope_traditional": True}, "rope_traditional"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("llama", {"rope_scaling": {**YARN, "beta_fast": 8}}, "beta_fast 32"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "config.json: rope_scaling: no 'factor'"),
        ("phi3", {"rope_scaling": {**LONG, "long_factor": [1.0]}}, "long_factor has 1 numbers"),
        ("olmo2", {"num_key_value_heads": 4}, "heads 8 wide"),
        ("qwen3_5", {"linear_key_head_dim": 8}, "linear_key_head_dim other than"),
        ("qwen3_5", {"layer_types": ["full_attention"] * 2}, "full_attention_interval"),
        ("hunyuan_v1_dense", {"use_qk_norm": False}, "use_qk_norm"),
        ("llama", {"max_position_embeddings": None}, "no 'max_position_embeddings'"),
        ("mixtral", {"num_local_experts": 8}, "4 experts, config.json 8"),
        ("llama", {"num_hidden_layers": 3}, "layer 2 is missing"),
        ("deepseek_v3", {}, "'deepseek_v3' is no architecture that mlxforge can write as GGUF (it can: llama, "),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(family, options, said, bases):
    source = FolderSource(bases.get(family, bases["llama"]))
    source.config.get("text_config", source.config).update(options)
    source.config["model_type"] = family
    with pytest.raises(ModelError) as error:  # noqa: PT012
        layout(source)
        metadata(source)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "name", "said"),
    [
        ("llama", "model.layers.0.self_attn.surprise.weight", "no place in a llama GGUF for model.layers.0.self_attn.surprise"),
        (
            "smollm3",
            "model.layers.0.self_attn.o_proj.bias",
            "no place in a smollm3 GGUF for model.layers.0.self_attn.o_proj.bias",
        ),
        ("qwen3_moe", "model.layers.0.mlp.experts.1.up_proj.weight", "several shapes"),
        ("mistral", "language_model.model.embed_tokens.weight", "are the same tensor"),
    ],
)
def test_a_tensor_without_a_place_is_refused(family, name, said, bases):
    source = FolderSource(bases[family])
    add(source, name)
    with pytest.raises(ModelError, match=said):
        layout(source)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.layers.1.self_attn.q_norm.weight"])
def test_a_tensor_that_is_missing_is_named(name, bases):
    source = FolderSource(bases["qwen3"])
    del source.entries[name]
    with pytest.raises(ModelError, match="is missing"):
        layout(source)
