"""What an exporter reads: any block of rows is that of the whole tensor, and the whole is what mlx-lm computes with."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlxforge.core.errors import ModelError
from mlxforge.export.fuse import open_source
from mlxforge.export.source import Entry, FolderSource, narrowed, text_config, widened
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.opening import open_model

FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def whole_and_parts_agree(source):
    """rows, chunks and block of every tensor tell the same."""
    for name, entry in source.entries.items():
        whole = source.rows(name)
        assert whole.shape == entry.shape
        assert whole.dtype == np.float32
        parts = [source.rows(name, start, start + 3) for start in range(0, entry.rows, 3)]
        # A product of fewer rows may be summed in another order.
        assert np.allclose(np.concatenate(parts), whole, rtol=0, atol=1e-6)
        stored = b"".join(source.chunks(name))
        assert len(stored) == entry.nbytes
        assert stored == narrowed(whole, entry.dtype).tobytes()
        block = source.block(name)
        assert block.dtype == np.float32 or block.tobytes() == stored
        assert np.array_equal(widened(block, "BF16" if block.dtype == np.uint16 else "F32"), whole)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_folder(dtype, tmp_path):
    base = make_tiny("qwen3_moe", tmp_path / "base", dtype=dtype)
    source = open_source(base, None)
    whole_and_parts_agree(source)
    assert {entry.dtype for entry in source.entries.values()} == {FLOATS[dtype]}
    for name, array in mx.load(str(base / "model.safetensors")).items():
        assert np.array_equal(source.rows(name), np.array(array.astype(mx.float32)))
        assert source.block(name, 0, 2).tobytes() == b"".join(source.chunks(name))[: source.block(name, 0, 2).nbytes]


@pytest.mark.parametrize(
    ("mode", "bits", "group", "dtype"),
    [("affine", 4, 32, "float16"), ("affine", 3, 64, "bfloat16"), ("mxfp4", 4, 32, "bfloat16")],
)
def test_a_packed_base_and_an_adapter_over_it(mode, bits, group, dtype, make_adapter, tmp_path):
    """Against mlx-lm's own way of merging, in float32."""
    tiny = make_tiny("qwen3_moe", tmp_path / "tiny", dtype=dtype)
    model, tokenizer, config = mlx_lm.load(str(tiny), return_config=True)
    model, config = mlx_lm.utils.quantize_model(model, config, group, bits, mode=mode)
    base = tmp_path / "packed"
    mlx_lm.utils.save(base, str(tiny), model, tokenizer, config)
    source = open_source(base, None)
    whole_and_parts_agree(source)
    assert set(source.entries) == set(FolderSource(tiny).entries)
    assert not {"quantization", "quantization_config"} & set(source.config)
    adapter = make_adapter(tmp_path / "adapter", base)
    merged = open_source(base, adapter)
    whole_and_parts_agree(merged)
    loaded = open_model(str(adapter), tmp_path, "float32").loaded.model
    for path, module in loaded.named_modules():
        if hasattr(module, "fuse"):
            wanted = np.array(module.fuse(dequantize=True).weight.astype(mx.float32))
            got = merged.rows(f"{path}.weight")
            # Where mlx-lm unpacks to half precision (the scales of mxfp4 are no floats), it rounds what it adds.
            assert np.abs(got - wanted).max() < (1e-5 if mode == "affine" else 5e-2)
            assert merged.block(f"{path}.weight").dtype == np.float32


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama3", "dora"), ("llama3", "full"), ("qwen3_moe", "lora"), ("granitemoe", "full"), ("qwen3_5", "full")],
)
def test_any_rows_of_what_an_adapter_changes(family, kind, hub_base, make_adapter, tmp_path):
    base = hub_base(family, tmp_path / "base")
    whole_and_parts_agree(open_source(base, make_adapter(tmp_path / "adapter", base, kind=kind)))


def test_a_layer_packed_in_its_own_way(tmp_path):
    """The config names it, or the shapes tell."""
    tiny = make_tiny("llama3", tmp_path / "tiny")
    model, tokenizer, config = mlx_lm.load(str(tiny), return_config=True)

    def chosen(path, module):
        return {"group_size": 64, "bits": 8} if path.endswith("v_proj") else hasattr(module, "to_quantized")

    model, config = mlx_lm.utils.quantize_model(model, config, 32, 4, quant_predicate=chosen)
    mlx_lm.utils.save(tmp_path / "packed", str(tiny), model, tokenizer, config)
    name = "model.layers.0.self_attn.v_proj.weight"
    truth, file = FolderSource(tiny).rows(name), tmp_path / "packed" / "config.json"
    whole = json.loads(file.read_text())
    assert np.abs(open_source(tmp_path / "packed").rows(name) - truth).max() < 0.01
    file.write_text(json.dumps(whole | {"quantization": {"group_size": 32, "bits": 4}}))
    assert np.abs(open_source(tmp_path / "packed").rows(name) - truth).max() < 0.01
    file.write_text(
        json.dumps(whole | {"quantization": {"group_size": 32, "bits": 4, name[:-7]: {"group_size": 32, "bits": 4}}})
    )
    with pytest.raises(ModelError, match="v_proj' is packed in a way"):
        open_source(tmp_path / "packed")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "packed as gptq"),
        ({"quantization_config": {"quant_method": "awq"}}, "packed as awq"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "packed as fp8"),
    ],
)
def test_other_packings_are_refused(change, said, tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=said):
        open_source(base, None)


def test_what_mlx_lm_makes_in_an_unknown_way_is_refused(make_adapter, tmp_path):
    """gpt-oss: the rows of gate and up alternate in one tensor of the hub's."""
    base = make_tiny("gpt_oss", tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    weights = dict(mx.load(str(base / "model.safetensors")))
    mx.eval(weights)
    for name in [one for one in weights if one.endswith("gate_proj.weight")]:
        gate, up = weights.pop(name), weights.pop(name.replace("gate_proj", "up_proj"))
        weights[name.replace("gate_proj", "gate_up_proj")] = mx.stack([gate, up], axis=2).reshape(4, -1, gate.shape[-1])
    mx.save_safetensors(str(base / "model.safetensors"), weights)
    with pytest.raises(ModelError, match=r"gate_proj\.weight' cannot be written back: .*lora\.targets"):
        open_source(base, adapter)


def test_packed_words_that_no_config_explains_are_refused(tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    weights = dict(mx.load(str(base / "model.safetensors")))
    mx.eval(weights)
    mx.save_safetensors(str(base / "model.safetensors"), weights | {"a.qweight": mx.zeros((4, 4), mx.uint32)})
    with pytest.raises(ModelError, match=r"'a\.qweight' is packed \(U32\)"):
        open_source(base, None)


def test_a_header_whose_offsets_do_not_fit_its_shapes_is_refused(tmp_path):
    base = make_tiny("llama3", tmp_path / "base")
    file = base / "model.safetensors"
    data = file.read_bytes()
    assert data.count(b'"shape":[512,64]') == 1
    file.write_bytes(data.replace(b'"shape":[512,64]', b'"shape":[512,32]'))
    with pytest.raises(ModelError, match=r"takes 131,072 bytes where its shape and type need 65,536"):
        open_source(base, None)


@given(arrays(np.float32, 17, elements=st.floats(width=32)), st.sampled_from(["float16", "bfloat16"]))
def test_rounding_is_that_of_mlx(block, dtype):
    stored = narrowed(block, FLOATS[dtype])
    wanted = np.array(mx.array(block).astype(getattr(mx, dtype)).astype(mx.float32))
    assert np.array_equal(widened(stored, FLOATS[dtype]), wanted, equal_nan=True)


def test_ties_go_to_the_even_one():
    between = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF818000, 0x7F800000, 0x7F800001], np.uint32).view(np.float32)
    assert [hex(bits) for bits in narrowed(between, "BF16")] == ["0x3f80", "0x3f82", "0x3f81", "0xbf82", "0x7f80", "0x7fc0"]


def test_blocks_cover_all_rows():
    for shape in ((), (7,), (5, 1 << 22), (1 << 20, 64)):
        entry = Entry("a", "F32", shape)
        blocks = list(entry.blocks)
        assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
        assert blocks[-1][1] == entry.rows


def test_the_text_config_is_laid_over_the_rest():
    config = {"model_type": "outer", "vocab_size": 5, "text_config": {"model_type": "inner"}}
    assert text_config(config) == {**config, "model_type": "inner"}
    assert text_config({"model_type": "plain"}) == {"model_type": "plain"}
