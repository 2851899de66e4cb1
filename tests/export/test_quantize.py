"""Types and bytes of GGUF tensors: llama.cpp's rules by hand, and other implementations of the same formats."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType, LlamaFileType
from gguf.quants import dequantize, quantize

from mlxforge.core.errors import ConfigError, MissingExtraError
from mlxforge.export import quantize as module
from mlxforge.export.quantize import (
    QUANTS,
    BadValues,
    Encoder,
    chosen_types,
    dimensions,
    file_order,
    fitting,
    more_bits,
    nbytes,
    needs_library,
    quant_of,
    quantizable,
    require_library,
)


@dataclass(frozen=True)
class Matrix:
    name: str
    shape: tuple[int, ...] = (512, 512)
    keep32: bool = False


def model(layers=8, width=512, tied=False, fused=False, experts=0, architecture="llama", heads=(8, 2)):
    """The matrices of a transformer, and the keys that describe it."""
    stems = ["attn_qkv"] if fused else ["attn_q", "attn_k", "attn_v"]
    ends = "_exps" if experts else ""
    stems += ["attn_output", f"ffn_gate{ends}", f"ffn_up{ends}", f"ffn_down{ends}"]
    shape = {stem: (experts, width, width) if "_exps" in stem else (width, width) for stem in stems}
    tensors = [Matrix("token_embd.weight", (1000, width)), Matrix("output_norm.weight", (width,), True)]
    tensors += [] if tied else [Matrix("output.weight", (1000, width))]
    tensors += [Matrix(f"blk.{layer}.{stem}.weight", shape[stem]) for layer in range(layers) for stem in stems]
    counts = {"block_count": layers, "expert_count": experts}
    counts |= {"attention.head_count": heads[0], "attention.head_count_kv": heads[1]}
    keys = [("general.architecture", architecture, 8)]
    return tensors, keys + [(f"{architecture}.{key}", value, 4) for key, value in counts.items()]


def layers_with(types, stem, kind):
    return [int(name.split(".")[1]) for name, one in types.items() if f".{stem}." in name and one == kind]


def test_the_numbers_are_llama_cpps():
    for name, quant in QUANTS.items():
        assert getattr(LlamaFileType, f"MOSTLY_{name.upper()}") == quant.number


def test_an_unknown_quantization_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'q4_k_m'"):
        quant_of("q4_km")


def test_more_bits_of_sixteen_layers():
    assert [layer for layer in range(16) if more_bits(layer, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]


def test_file_order_is_by_layer_then_name():
    names = ["blk.10.a", "token_embd.weight", "blk.2.b", "blk.2.a", "output.weight"]
    assert sorted(names, key=file_order) == ["output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.a"]


@pytest.mark.parametrize(("quant", "head"), [("q8_0", "Q8_0"), ("q4_0", "Q6_K"), ("q4_k_m", "Q6_K"), ("q3_k_m", "Q6_K")])
def test_the_head_or_the_tied_embedding_is_finer(quant, head):
    types, _ = chosen_types(*model(), quant)
    assert (types["output.weight"], types["token_embd.weight"]) == (head, QUANTS[quant].type)
    assert chosen_types(*model(tied=True), quant)[0]["token_embd.weight"] == head


@pytest.mark.parametrize("quant", ["q4_k_m", "q5_k_m"])
def test_medium_files_raise_values_and_down(quant):
    types, fallbacks = chosen_types(*model(16), quant)
    assert layers_with(types, "attn_v", "Q6_K") == layers_with(types, "ffn_down", "Q6_K") == [0, 1, 4, 7, 10, 13, 14, 15]
    assert {types["blk.0.attn_q.weight"], types["blk.0.ffn_up.weight"], types["blk.2.attn_v.weight"]} == {QUANTS[quant].type}
    assert not fallbacks


def test_a_fused_qkv_counts_as_values():
    types, _ = chosen_types(*model(16, fused=True), "q4_k_m")
    assert layers_with(types, "attn_qkv", "Q6_K") == [0, 1, 4, 7, 10, 13, 14, 15]


def test_q4_k_s_raises_the_first_layers():
    types, _ = chosen_types(*model(16), "q4_k_s")
    assert layers_with(types, "attn_v", "Q5_K") == [0, 1, 2, 3]
    assert layers_with(types, "ffn_down", "Q5_K") == [0, 1]


def test_q5_k_s_and_q6_k_raise_nothing():
    for quant in ("q5_k_s", "q6_k"):
        types, _ = chosen_types(*model(16), quant)
        assert {kind for name, kind in types.items() if name.startswith("blk")} == {QUANTS[quant].type}


def test_q3_k_m():
    types, _ = chosen_types(*model(16), "q3_k_m")
    assert layers_with(types, "attn_v", "Q5_K") == [0, 1]
    assert layers_with(types, "ffn_down", "Q5_K") == [0]
    assert len(layers_with(types, "ffn_down", "Q4_K")) == 15
    assert len(layers_with(types, "attn_output", "Q4_K")) == 16
    assert types["blk.5.attn_q.weight"] == "Q3_K"


def test_eight_experts_have_fine_keys_and_values():
    types, _ = chosen_types(*model(experts=8), "q4_k_m")
    assert {types["blk.2.attn_k.weight"], types["blk.2.attn_v.weight"]} == {"Q8_0"}
    assert types["blk.2.attn_output.weight"] == "Q5_K"
    assert chosen_types(*model(experts=4), "q4_k_m")[0]["blk.2.attn_k.weight"] == "Q4_K"


def test_layers_of_experts_are_counted_by_name():
    """Layer 0 is dense here, so that a count of what came before would be one behind."""
    tensors, keys = model(16, experts=4)
    tensors = [one for one in tensors if one.name != "blk.0.ffn_down_exps.weight"]
    types, _ = chosen_types(tensors, keys, "q4_k_m")
    assert layers_with(types, "ffn_down_exps", "Q6_K") == [1, 4, 7, 10, 13, 14, 15]


def test_seventy_billion_have_finer_values():
    def values(**options):
        return layers_with(chosen_types(*model(80, **options), "q4_k_m")[0], "attn_v", "Q5_K")

    assert len(values()) == len(values(architecture="qwen2")) > 0
    assert values(heads=(8, 8)) == values(architecture="qwen3") == values(experts=8) == []


def test_rows_that_fit_no_block_fall_back():
    assert [fitting(kind, 96) for kind in ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")] == ["Q4_0", "Q5_0", "Q5_1", "Q8_0", "Q8_0"]
    assert [fitting(kind, 40) for kind in ("Q4_K", "Q8_0", "Q4_0")] == ["F16"] * 3
    types, fallbacks = chosen_types(*model(2, width=96), "q4_k_m")
    assert fallbacks["output.weight"] == "Q6_K -> Q8_0"
    assert fallbacks["blk.0.attn_q.weight"] == "Q4_K -> Q5_0"
    assert set(fallbacks) == {name for name in types if name != "output_norm.weight"}


def test_what_is_never_quantized():
    kept = ["blk.0.attn_norm.weight", "blk.0.attn_q_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ssm_conv1d.weight"]
    kept += ["blk.0.shortconv.conv.weight", "position_embd.weight", "token_types.weight", "altup_proj.weight", "blk.0.ssm_a"]
    kept += ["per_layer_model_proj.weight", "blk.0.attn_q.bias"]
    assert not any(quantizable(Matrix(name)) for name in kept)
    assert not quantizable(Matrix("rope_freqs.weight", (64,)))
    assert not quantizable(Matrix("blk.0.ffn_gate_inp_shexp.weight", (1, 512)))
    assert quantizable(Matrix("blk.0.ffn_gate_shexp.weight"))
    assert [dimensions(shape) for shape in ((3,), (1, 3), (3, 1), (1, 2, 3), (2, 1, 3), (1, 1), ())] == [1, 1, 2, 2, 3, 1, 0]


def test_float_files_keep_norms_in_float32():
    types, fallbacks = chosen_types(*model(1), "bf16")
    assert types["output_norm.weight"] == "F32"
    assert types["blk.0.attn_q.weight"] == types["output.weight"] == "BF16"
    assert not fallbacks
    assert chosen_types([Matrix("blk.0.ssm_conv1d.weight", keep32=True)], [], "q4_0")[0] == {"blk.0.ssm_conv1d.weight": "F32"}


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).standard_normal((300, 1024), np.float32) * np.float32(0.05)


@pytest.fixture(scope="module")
def encoder():
    with Encoder() as made:
        yield made


def ggml(kind):
    return GGMLQuantizationType[kind]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_0", "Q5_1"])
def test_bytes_are_those_of_the_gguf_package(values, encoder, kind):
    rounded = values.astype(np.float16).astype(np.float32)
    assert np.array_equal(encoder.encode(values, kind), quantize(rounded, ggml(kind)))


def test_float_bytes_are_mlxs(values, encoder):
    hard = np.concatenate([values.ravel(), np.float32([0, -0.0, 1e-8, -6e-5, 2.0**-24, 2.0**-25, 65504, 1e-41, 1.0009765625])])
    for kind, dtype in (("F16", mx.float16), ("BF16", mx.bfloat16)):
        theirs = np.array(mx.array(hard).astype(dtype).view(mx.uint16))
        same = encoder.encode(hard, kind).ravel().view(np.uint16) == theirs
        # MLX flushes the smallest numbers of bfloat16 to zero on some machines.
        assert same[np.abs(hard) > 1e-30].all()
        assert same.all() or kind == "BF16"
    assert np.array_equal(encoder.encode(hard, "F32").ravel().view(np.float32), hard)


BOUNDS = {
    "Q8_0": 0.0054,
    "Q6_K": 0.018,
    "Q5_K": 0.036,
    "Q4_K": 0.072,
    "Q4_0": 0.087,
    "Q5_0": 0.045,
    "Q5_1": 0.042,
    "Q3_K": 0.16,
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_relative_errors(values, encoder, kind):
    back = dequantize(encoder.encode(values, kind), ggml(kind))
    error = float(np.sqrt(((back - values) ** 2).mean() / (values**2).mean()))
    assert BOUNDS[kind] / 2 < error < BOUNDS[kind] * 1.05


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_K"])
def test_threads_and_blocks_change_nothing(values, kind):
    with Encoder(1) as one, Encoder(5) as five:
        whole = one.encode(values, kind)
        parts = [five.start(values[start : start + 77], kind) for start in range(0, 300, 77)]
        assert np.array_equal(whole, np.concatenate([part() for part in parts]))
        assert whole.nbytes == nbytes(kind, values.shape)


def test_float32_values_may_skip_float16(values, encoder):
    straight = encoder.encode(values, "Q8_0", through16=False)
    assert np.array_equal(straight, quantize(values, ggml("Q8_0")))
    assert not np.array_equal(straight, encoder.encode(values, "Q8_0"))


@pytest.mark.parametrize(("value", "text"), [(np.nan, "no finite"), (np.inf, "no finite"), (70000, "range of f16")])
@pytest.mark.parametrize("kind", ["F16", "Q4_K", "Q8_0"])
def test_values_that_do_not_fit_are_refused(values, encoder, kind, value, text):
    bad = values.copy()
    bad[250, 17] = value
    with pytest.raises(BadValues, match=text):
        encoder.encode(bad, kind)
    if value == 70000:
        encoder.encode(bad, "BF16")
        return
    for other in ("F32", "BF16"):
        with pytest.raises(BadValues, match=text):
            encoder.encode(bad, other)
        stored = encoder.encode(np.zeros((4, 1024)), other).copy()
        stored.view(np.uint32 if other == "F32" else np.uint16)[3, 3] = 0x7F800000 if other == "F32" else 0x7F80
        with pytest.raises(BadValues):
            encoder.check(stored.tobytes(), other)()


def test_rows_that_are_no_whole_blocks_are_an_error(encoder):
    with pytest.raises(ValueError, match="rows of 100 values are no whole blocks of Q8_0"):
        encoder.encode(np.zeros((2, 100)), "Q8_0")


def test_without_xllamacpp(monkeypatch, values):
    """Floats and q8_0 are made by numpy, with the same bytes; the rest names what is missing."""
    with Encoder(2) as encoder:
        kinds = ("F16", "Q8_0")
        before = [encoder.encode(values, kind) for kind in kinds]
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
        module.library.cache_clear()
        try:
            assert all(np.array_equal(one, encoder.encode(values, kind)) for one, kind in zip(before, kinds, strict=True))
            assert needs_library(["Q8_0", "F16", "F32"]) is False
            assert needs_library(["Q8_0", "Q6_K"])
            with pytest.raises(MissingExtraError, match="q4_k_m without a llama-quantize on the PATH"):
                require_library("q4_k_m")
        finally:
            monkeypatch.undo()
            module.library.cache_clear()
