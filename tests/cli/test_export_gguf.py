"""``mlxforge export gguf`` and ``mlxforge verify`` as a user runs them, for every architecture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlxforge import CptConfig, train
from mlxforge.cli import subject as command
from mlxforge.cli.main import run
from mlxforge.core.config import from_dict
from mlxforge.core.files import embedded, file_hash
from mlxforge.export import gguf, llama, quantize, restored
from mlxforge.export import verify as checks_module
from mlxforge.export.architectures import EXPORTABLE
from mlxforge.export.quantize import QUANTS
from mlxforge.models.tiny import make_tiny
from mlxforge.runs import export_gguf as orchestration

pytest.importorskip("xllamacpp")
# What llama.cpp wants of a family beside what its tiny model has.
NEEDS = {
    "gemma3": {"sliding_window_pattern": 6, "num_hidden_layers": 6},
    "gemma3_text": {"sliding_window_pattern": 6, "num_hidden_layers": 6},
    "smollm3": {"no_rope_layer_interval": 4, "num_hidden_layers": 4},
}
# Rows of 256, so that the types of four bits fit.
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
WIDTHS = {"gemma2": {"query_pre_attn_scalar": 64}, "lfm2": {"block_dim": 256, "block_ff_dim": 256}}
CHECKS = ["loads", "tokens", "start of text", "template", "chats", "stop", "tensors"]


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    """Fewer texts and places than a user's: the tokenizers have tests of their own."""
    monkeypatch.setattr(checks_module, "FUZZ", 120)
    monkeypatch.setattr(checks_module, "PLACES", 3)
    monkeypatch.setattr(checks_module, "ANSWER", 6)


def call(capsys, *words):
    """(exit code, stdout, stderr) of a command line."""
    code = run([str(word) for word in words], debug=False)
    said = capsys.readouterr()
    return code, said.out, said.err


def told(report):
    return {check["name"]: (check["passed"], check["value"], check["limit"], check["detail"]) for check in report["checks"]}


@pytest.mark.parametrize("family", EXPORTABLE)
def test_every_architecture_is_exported_and_verified(family, tmp_path, capsys):
    base = make_tiny(family, tmp_path / "base", **NEEDS.get(family, {}))
    file = tmp_path / "out.gguf"
    code, out, err = call(capsys, "export", "gguf", base, "-o", file, "--quant", "f16", "--json")
    assert code == 0, err
    result = json.loads(out)
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert result["passed"] is True
    assert [check["name"] for check in report["checks"]] == [*CHECKS, "logits", "divergence", "greedy"]
    assert all(check["passed"] for check in report["checks"]), told(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out.gguf", "out.report.json"]


@pytest.mark.parametrize(
    "family", ["llama3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "qwen3_moe", "phi3", "lfm2"))]
)
def test_several_quantizations_at_once(family, tmp_path, capsys):
    base = make_tiny(family, tmp_path / "base", **WIDE, **WIDTHS.get(family, {}))
    quants = [word for quant in ("q8_0", "q4_k_m") for word in ("--quant", quant)]
    code, out, err = call(capsys, "export", "gguf", "--model", base, "-o", tmp_path / "out.gguf", *quants, "--json")
    assert code == 0, err
    files = json.loads(out)["files"]
    assert [Path(file["file"]).name for file in files] == ["out.q8_0.gguf", "out.q4_k_m.gguf"]
    for file in files:
        report = json.loads(Path(file["report"]).read_text())
        assert [check["name"] for check in report["checks"]] == [*CHECKS, "divergence"]
        assert (report["quant"], report["types"], report["fallbacks"]) == (file["quant"], file["types"], file["fallbacks"])
    assert "Q4_K" in files[1]["types"]


@pytest.fixture(scope="module")
def trained(documents, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    settings = {"data": [str(documents)], "runs_dir": str(runs), "name": "mill", "steps": 2, "sample_tokens": 0}
    settings |= {"max_length": 64, "batch_tokens": 256, "warmup": 0, "lora": {"rank": 4}, "learning_rate": 0.01}
    return train(from_dict(CptConfig, settings)).path


def test_a_run_is_held_against_the_model_that_was_trained(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "export", "gguf", "mill", "--quant", "f16", "--runs-dir", trained.parent)
    assert code == 0
    for word in (*CHECKS, "logits", "passed", "wrote mill.f16.gguf", "next: llama-cli -m mill.f16.gguf"):
        assert word in out
    report = json.loads(Path("mill.f16.report.json").read_text())
    keys = ["file", "sha256", "bytes", "quant", "against", "passed", "llama_cpp", "mlxforge", "checks", "types", "fallbacks"]
    assert list(report) == [*keys, "notes", "lineage"]
    assert (report["file"], report["quant"], report["against"]) == ("mill.f16.gguf", "f16", "run:mill")
    assert report["sha256"] == file_hash(Path("mill.f16.gguf"))
    assert report["lineage"]["run"]["name"] == "mill"
    assert report["lineage"]["adapters"][0]["sha256"] == file_hash(trained / "adapters.safetensors")
    # The base without what was learnt is another model.
    code, _, err = call(capsys, "verify", "mill.f16.gguf", "--against", "tiny")
    assert code == 1
    assert "error: mill.f16.gguf: not as it was trained: tensors" in err
    assert Path("mill.f16.gguf").is_file()
    assert not json.loads(Path("mill.f16.report.json").read_text())["passed"]
    code, out, _ = call(capsys, "verify", "mill.f16.gguf", "--against", "mill", "--runs-dir", trained.parent, "--json")
    assert (code, json.loads(out)["passed"], json.loads(out)["quant"]) == (0, True, "f16")


def test_another_base_of_the_same_shapes_is_told(trained, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(embedded("data", "tiny"), other)
    weights = mx.load(str(other / "model.safetensors"))
    mx.save_safetensors(str(other / "model.safetensors"), {name: 1.01 * array for name, array in weights.items()})
    said = "is not the model that 'mill' was trained on"
    given = ("--adapter", trained, "-o", tmp_path / "out", "--force")
    for model, told in (("tiny", False), (other, True)):
        code, _, err = call(capsys, "fuse", "--model", model, *given)
        assert (code, said in err) == (0, told), err
    file = tmp_path / "out.gguf"
    code, _, err = call(capsys, "export", "gguf", "--model", other, *given[:2], "-o", file, "--quant", "f16", "--no-verify")
    assert (code, said in err) == (0, True), err
    code, _, err = call(capsys, "verify", file, "--against", "mill", "--runs-dir", trained.parent)
    assert (code, said in err, "tensors" in err) == (1, False, True), err


def test_a_file_that_fails_keeps_a_name_that_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(restored.ERRORS, "Q8_0", 1e-4)
    words = ("export", "gguf", "tiny", "-o", tmp_path / "out.gguf", "--quant", "q8_0")
    code, out, err = call(capsys, *words)
    assert code == 1
    assert "FAILED" in out
    assert "error: " in err
    assert "not as it was trained: tensors 0.005" in err
    assert "(limit 0.0001)" in err
    assert "the file was left as out.gguf.unverified" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf.unverified", "out.report.json"]
    assert json.loads((tmp_path / "out.report.json").read_text())["file"] == "out.gguf.unverified"
    # It is not written over unasked, and verified later by its new name.
    assert call(capsys, *words)[0] == 2
    code, out, _ = call(capsys, *words, "--force", "--json")
    assert (code, json.loads(out)["passed"]) == (1, False)
    monkeypatch.undo()
    assert call(capsys, "verify", tmp_path / "out.gguf.unverified", "--against", "tiny")[0] == 0
    assert call(capsys, *words, "--force")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "out.report.json"]


def test_without_the_extra_it_is_said_that_nothing_was_verified(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(llama, "available", lambda: False)
    file = tmp_path / "out.gguf"
    code, out, _ = call(capsys, "export", "gguf", "tiny", "-o", file, "--quant", "f16")
    assert code == 0
    assert "not verified: the package 'xllamacpp' is not installed" in out
    code, out, _ = call(capsys, "export", "gguf", "tiny", "-o", file, "--quant", "f16", "--force", "--json")
    result = json.loads(out)
    assert (code, result["passed"], result["files"][0]["passed"]) == (0, None, None)
    assert result["unverified"].startswith("not verified")
    assert not (tmp_path / "out.report.json").exists()
    for words in (("export", "gguf", "tiny", "-o", file, "--verify", "--force"), ("verify", file, "--against", "tiny")):
        code, _, err = call(capsys, *words)
        assert code == 2
        assert "pip install 'mlxforge[gguf]'" in err


def test_of_several_files_none_is_begun_where_one_cannot_be_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(llama, "available", lambda: False)
    for module in (gguf, quantize):
        monkeypatch.setattr(module, "library", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ("export", "gguf", "tiny", "-o", tmp_path / "out.gguf", "--quant", "f16")
    code, _, err = call(capsys, *words, "--quant", "q4_k_m")
    assert (code, "pip install 'mlxforge[gguf]'" in err) == (2, True)
    free = gguf.MARGIN + 5_000_000  # one file in f16 takes 4.7 MB
    monkeypatch.setattr(gguf.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    code, _, err = call(capsys, *words, "--quant", "bf16")
    assert (code, "to stay free; 22 MB are free" in err) == (2, True)
    assert not list(tmp_path.iterdir())
    assert call(capsys, *words)[0] == 0


def test_what_was_there_keeps_its_report_until_another_takes_its_place(tmp_path, capsys, monkeypatch):
    words = ("export", "gguf", "tiny", "-o", tmp_path / "out.gguf", "--quant", "q8_0", "--force")
    assert call(capsys, *words)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["out.gguf", "out.report.json"]

    def stopped(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(orchestration, "checked", stopped)
    assert call(capsys, *words)[0] == 130
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items()


def test_verification_can_be_left_out_and_takes_an_old_report_along(tmp_path, capsys):
    (tmp_path / "out.report.json").write_text("{}")
    words = ("export", "gguf", "tiny", "-o", tmp_path / "out.gguf", "--quant", "f16", "--no-verify")
    code, _, err = call(capsys, *words)
    assert (code, "out.report.json: is there already" in err) == (2, True)
    code, out, _ = call(capsys, *words, "--force")
    assert (code, "not verified: --no-verify" in out) == (0, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "out.origin.json"]


def test_what_is_wrong_is_said_and_nothing_written(tmp_path, capsys):
    (tmp_path / "there.gguf").write_bytes(b"")
    strange = make_tiny("cohere2", tmp_path / "strange")
    before = sorted(tmp_path.iterdir())
    out = ("-o", tmp_path / "out.gguf")
    for words, said in (
        (("tiny", "-o", tmp_path / "there.gguf"), "there.gguf: is there already (--force replaces it)"),
        (("tiny", "-o", tmp_path / "out.bin"), "ends in .gguf"),
        (("tiny", "-o", tmp_path), "is a folder"),
        (("tiny", "-o", tmp_path, "--quant", "f16", "--quant", "q8_0"), "is a folder"),
        (("tiny", "-o", tmp_path / "there.gguf" / "out.gguf", "--quant", "f16"), "cannot write"),
        (("tiny", *out, "--quant", "q9"), "'q9' is not one of"),
        ((strange, *out), "'cohere2' is no architecture that mlxforge can write as GGUF"),
        ((), "nothing is named"),
        (("./nothing", *out), "not a folder here"),
    ):
        code, _, err = call(capsys, "export", "gguf", *words)
        assert (code, said in err) == (2, True), (words, err)
    for words, said in (
        ((tmp_path / "none.gguf", "--against", "tiny"), "no such file"),
        ((tmp_path / "there.gguf",), "--against"),
        ((tmp_path / "there.gguf", "--against", strange), "no architecture"),
    ):
        code, _, err = call(capsys, "verify", *words)
        assert (code, said in err) == (2, True), (words, err)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_is_no_gguf_fails_the_first_check(tmp_path, capsys):
    file = tmp_path / "there.gguf"
    file.write_bytes(b"no model")
    code, out, err = call(capsys, "verify", file, "--against", "tiny")
    assert code == 1
    assert "loads" in out
    assert "FAILED" in out
    said = "error: " + str(file) + ": not as it was trained: loads: llama.cpp cannot open the file: invalid magic characters"
    assert err.splitlines()[-1].startswith(said)


def test_a_llama_cpp_that_does_not_start_says_nothing_of_the_file(tmp_path, capsys, monkeypatch):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "xllamacpp.py").write_text("raise ImportError('built for another machine')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    file = tmp_path / "out.gguf"
    code, _, err = call(capsys, "export", "gguf", "tiny", "-o", file, "--quant", "f16")
    said = "error: the package 'xllamacpp' does not start: built for another machine (install it again; --no-verify exports"
    assert (code, err.splitlines()[-1].startswith(said)) == (2, True)
    assert list(tmp_path.iterdir()) == [broken]


def test_the_kinds_on_the_command_line_are_the_exporters():
    assert set(command.QUANTS) == set(QUANTS)
    assert command.DEFAULT_QUANT in QUANTS


@pytest.mark.slow
def test_an_adapter_over_a_model(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "adapter", ignore=shutil.ignore_patterns("checkpoints", "run.json", "events*"))
    words = ("--model", "tiny", "--adapter", tmp_path / "adapter", "--quant", "bf16", "-o", tmp_path / "out.gguf", "--json")
    code, out, err = call(capsys, "export", "gguf", *words)
    assert code == 0, err
    assert json.loads(out)["base"] == str(tmp_path / "adapter")
