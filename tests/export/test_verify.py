"""The checks of a GGUF file, each seen to fail on the fault that it is for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mlxforge.core.rows import Message
from mlxforge.export import verify as module
from mlxforge.export.gguf import write_gguf
from mlxforge.export.layout import metadata
from mlxforge.export.quantize import Encoder
from mlxforge.export.report import failure, passed, report_path, unverified
from mlxforge.export.restored import ERRORS, error_of, limit
from mlxforge.export.verify import Check, divergence, greedy, judged, mean_of, verify
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.opening import Base
from mlxforge.runs.verify import material, subject_of

pytest.importorskip("xllamacpp")
FUZZ = 120


class Kit:
    """A tiny model on its way into GGUF files that are changed a little."""

    def __init__(self, family, folder, **options):
        self.folder = folder
        self.made = material(Base(str(make_tiny(family, folder / "base", **options))))
        self.subject = subject_of(self.made)

    def checks(self, quant="f16", *, keys=lambda key, value: value, placed=None, both=False, spoil=None):
        """The checks by name of a file: keys changed (None drops one), tensors placed otherwise, in the reference too with
        ``both``, or the bytes spoilt."""
        rows = [*metadata(self.made.source), *self.made.vocabulary.keys]
        rows = [(key, new, *kind) for key, value, *kind in rows if (new := keys(key, value)) is not None]
        placed = placed or self.made.placed
        file = self.folder / f"{quant}.gguf"
        write_gguf(file, self.made.source, placed, rows, quant, force=True)
        if spoil:
            spoil(file)
        subject = replace(self.subject, placed=placed) if both else self.subject
        return {check.name: check for check in verify(file, subject, fuzz=FUZZ)[0]}

    def otherwise(self, part, **changes):
        """The placed tensors, those whose name holds ``part`` changed."""
        return [replace(tensor, **changes) if part in tensor.name else tensor for tensor in self.made.placed]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Kit("llama3", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return Kit("gemma", tmp_path_factory.mktemp("gemma"))


def failed(checks):
    return {name for name, check in checks.items() if check.passed is False}


def swap(key, new):
    return lambda name, value: new(value) if name == key else value


def test_a_good_file_passes_every_check(llama):
    checks = llama.checks()
    names = ["loads", "tokens", "start of text", "template", "chats", "stop", "tensors", "logits", "divergence", "greedy"]
    assert list(checks) == names
    assert not failed(checks), failed(checks)
    # Far within the limits, or they would not tell a fault from rounding.
    assert checks["logits"].value < 0.2 * checks["logits"].limit
    assert checks["divergence"].value < 0.2 * checks["divergence"].limit


FAULTS = {
    "another splitter": ("tokenizer.ggml.pre", lambda _: "qwen2", {"tokens", "chats"}),
    "no template": ("tokenizer.chat_template", lambda _: None, {"template", "chats"}),
    "another end of text": ("tokenizer.ggml.eos_token_id", lambda _: 77, {"stop"}),
    "another base of positions": ("llama.rope.freq_base", lambda _: 20000.0, {"logits", "divergence"}),
}
MORE_FAULTS = {
    "GPT-2's splitter": ("tokenizer.ggml.pre", lambda _: "gpt-2", {"tokens", "chats"}),
    "another template": (
        "tokenizer.chat_template",
        lambda text: text.replace("|eot_id|>'", "|eot_id|>\\n'"),
        {"template", "chats"},
    ),
    "BOS where there was none": ("tokenizer.ggml.add_bos_token", lambda _: True, {"start of text"}),
    "another end of turn": ("tokenizer.ggml.eot_token_id", lambda _: 77, {"stop"}),
    "half of the merges": ("tokenizer.ggml.merges", lambda merges: merges[: len(merges) // 2], {"tokens", "chats"}),
    "no special tokens": ("tokenizer.ggml.token_type", lambda kinds: [1] * len(kinds), {"tokens", "chats"}),
    "another epsilon": ("llama.attention.layer_norm_rms_epsilon", lambda _: 1e-2, {"logits", "divergence"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_key_is_found(llama, fault):
    key, new, red = FAULTS[fault]
    assert failed(llama.checks(keys=swap(key, new))) >= red


@pytest.mark.slow
@pytest.mark.parametrize("fault", MORE_FAULTS)
def test_more_wrong_keys_are_found(llama, fault):
    key, new, red = MORE_FAULTS[fault]
    assert failed(llama.checks(keys=swap(key, new))) >= red


def test_a_skipped_permutation_is_found_though_the_tensors_agree(llama):
    straight = llama.otherwise("attn_q", op="copy", options=())
    assert failed(llama.checks(placed=straight)) >= {"tensors", "logits", "divergence"}
    assert failed(llama.checks(placed=straight, both=True)) >= {"logits", "divergence"}
    assert failed(llama.checks("q8_0", placed=straight, both=True)) == {"divergence"}


def test_a_norm_without_its_one_is_found(gemma):
    assert not failed(gemma.checks())
    plain = gemma.otherwise("_norm", op="copy")
    assert failed(gemma.checks(placed=plain, both=True)) >= {"logits", "divergence"}


@pytest.mark.parametrize("quant", ["f16", pytest.param("q8_0", marks=pytest.mark.slow)])
def test_a_tensor_of_zeros_is_found_and_named(llama, quant):
    def zero(file):
        from gguf import GGUFReader

        reader = GGUFReader(file, "r+")
        next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight").data[:] = 0
        reader.data.flush()

    check = llama.checks(quant, spoil=zero)["tensors"]
    assert (check.passed, check.value) == (False, pytest.approx(1.0))
    assert "blk.1.ffn_down.weight" in check.detail


def test_a_truncated_file_fails_to_load_and_nothing_else_is_asked(llama):
    checks = llama.checks(spoil=lambda file: file.write_bytes(file.read_bytes()[:-4000]))
    assert set(checks) == {"loads"}
    assert checks["loads"].passed is False
    assert "not within the file bounds" in checks["loads"].detail
    junk = llama.checks(spoil=lambda file: file.write_bytes(b"GGUF" + bytes(400)))
    assert failed(junk) == {"loads"}


@pytest.mark.slow
def test_a_file_of_another_model_is_found(llama, tmp_path):
    other = Kit("llama3", tmp_path / "seed", seed=1)
    assert failed(replaced(other, llama)) >= {"tensors", "logits"}
    strange = replaced(Kit("llama3", tmp_path / "small", hidden_size=32), llama)
    assert strange["tensors"].passed is False
    assert strange["logits"] == Check("logits", None, detail="not checked: the tensors are not the model's")


def replaced(kit, judge):
    """The file of one kit held against another."""
    kit.checks()
    return {check.name: check for check in verify(kit.folder / "f16.gguf", judge.subject, fuzz=20)[0]}


@pytest.mark.slow
def test_quantized_files_are_held_against_their_own_tensors(tmp_path):
    kit = Kit("llama3", tmp_path, hidden_size=256, intermediate_size=256)
    for quant in ("q8_0", "q4_k_m", "q3_k_m"):
        checks = kit.checks(quant)
        assert not failed(checks), (quant, checks)
        assert checks["divergence"].value < 0.1 * checks["divergence"].limit


@pytest.mark.slow
def test_what_does_not_fit_into_memory_is_read_in_half_precision_or_told(llama, monkeypatch):
    monkeypatch.setattr(module, "precision", lambda placed: "float16")
    for quant in ("f16", "q8_0"):
        assert not failed(llama.checks(quant))
    monkeypatch.setattr(module, "precision", lambda placed: None)
    checks = llama.checks("q8_0")
    assert checks["logits"].passed is None
    assert "not enough memory" in checks["logits"].detail
    assert checks["tensors"].passed


@pytest.mark.slow
def test_noise_is_no_excuse_for_a_fault_but_for_a_sensitive_model(tmp_path):
    """Norms after every product make a random Gemma 3 of six layers hang on the last bits, in MLX too."""
    options = {"sliding_window_pattern": 6, "num_hidden_layers": 6, "head_dim": 32, "query_pre_attn_scalar": 32}
    kit = Kit("gemma3_text", tmp_path, **options)
    checks = kit.checks("q8_0")
    assert not failed(checks), checks["divergence"]
    plain = kit.otherwise("_norm", op="copy")
    assert "divergence" in failed(kit.checks("q8_0", placed=plain, both=True))


def test_errors_of_normal_values_are_about_half_of_their_limits():
    values = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    for kind in set(ERRORS) - {"F32", "F16", "BF16"}:
        with Encoder(1) as encoder:
            content = np.frombuffer(bytes(encoder.start(values, kind, through16=True)()), np.uint8).reshape(64, -1)
        off = dequantize(content, GGMLQuantizationType[kind]) - values
        assert 0.4 < np.sqrt((off**2).sum() / (values**2).sum()) / limit(kind) < 0.6, kind


def test_error_of_nothing_is_nothing():
    class Placed:
        def __init__(self, *blocks):
            self.all = blocks

        def blocks(self, source):
            return iter(self.all)

    one, none = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert error_of(np.zeros((4, 3), np.float32), Placed(none, none), None) == 0
    assert error_of(np.ones((4, 3), np.float32), Placed(none, none), None) == float("inf")
    assert error_of(np.zeros((4, 3), np.float32), Placed(one, one), None) == 1
    assert error_of(np.full((4, 3), np.nan, np.float32), Placed(one, one), None) == float("inf")
    assert error_of(np.array([1, 1, 1, 1, 1, 4], np.float32), Placed(one), None) == pytest.approx(np.sqrt(9 / 6))


def test_divergence_by_hand():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    assert divergence(np.log(p), np.log(q)) == pytest.approx(0.25 * np.log(2))
    # Only the first is compared: the others count as one.
    assert divergence(np.log(p[:1]), np.log(q[:1])) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75))
    assert divergence(np.log(p), np.log(p)) == 0
    # Sums that are off in the last bits of float32 are no divergence.
    assert abs(divergence(np.log(p), np.log(p) + 1e-6)) < 1e-11


def test_near_ties_pass_and_are_counted():
    assert greedy([0.0, 0.0, 0.01], 0.05, 0) == Check("greedy", True, 0.01, 0.05, "3 tokens, 1 of them near ties")
    assert greedy([0.0, 0.2, 0.01], 0.05, 0).passed is False
    assert greedy([0.0, 0.2, 0.01], 0.05, 1).passed
    assert greedy([float("nan")], 0.05, 0).passed is False


def test_flips_of_experts_are_allowed_and_counted():
    values = [0.01] * 9 + [3.0]
    assert judged(values, 0.05, 0).passed is False
    assert judged(values, 0.05, 1) == Check(
        "logits", True, 0.01, 0.05, "log-probabilities at 10 positions, 1 above the limit (a mixture of experts may have 1)"
    )
    assert judged([*values, float("nan")], 0.05, 1).passed is False
    assert mean_of(values, 0.05, 0).passed is False
    assert mean_of(values, 0.05, 1).passed
    assert mean_of([float("nan")] + [0.0] * 9, 0.05, 1).passed is False


def test_every_conversation_reaches_llama_cpp(llama):
    assert module.plain((Message("user", "a"), Message("assistant", "b"))) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert [name for name, _, _ in module.talks(llama.made.template)] == list(module.TALKS)


def test_reports_lie_beside_their_files(tmp_path):
    file = tmp_path / "out.q4_k_m.gguf"
    assert report_path(file) == report_path(unverified(file)) == tmp_path / "out.q4_k_m.report.json"
    assert unverified(file).name == "out.q4_k_m.gguf.unverified"
    assert unverified(unverified(file)) == unverified(file)


def test_what_was_not_checked_neither_passes_nor_fails():
    checks = [Check("loads", True), Check("logits", None, detail="not checked"), Check("stop", False, 2, 0, "goes on")]
    assert passed(checks[:2])
    assert not passed(checks)
    told = {"checks": [module.as_json(check) for check in checks]}
    assert failure(json.loads(json.dumps(told))) == "stop 2 (limit 0): goes on"
