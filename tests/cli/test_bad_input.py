"""Each mistake of a user is one clear line and exit code 2; nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from mlxforge.cli.main import run
from mlxforge.core.files import embedded
from mlxforge.models.tiny import make_tiny

GOOD = ["--plain", "--steps", "1", "--max-length", "64", "--sample-tokens", "0"]


def call(capsys, tmp_path, *words):
    """(exit code, lines of stderr) of ``mlxforge cpt``."""
    code = run(["cpt", *GOOD, "--runs-dir", str(tmp_path / "runs"), *map(str, words)], debug=False)
    return code, capsys.readouterr().err.strip().splitlines()


def file(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tiny(tmp_path):
    return shutil.copytree(embedded("data", "tiny"), tmp_path / "model")


DATA = {
    "no such file": (lambda p: p / "none.txt", "no such file"),
    "empty folder": (lambda p: file(p, "d/.hidden", "x").parent, "no readable files"),
    "no text": (lambda p: file(p, "a.txt", " \n\t\n"), "no text is left"),
    "not utf-8": (lambda p: file(p, "a.txt", b"abc\xff\xfe def"), "byte 3"),
    "broken json": (lambda p: file(p, "a.jsonl", '{"text": "x"}\n{"text": \n'), "a.jsonl:2"),
    "wrong keys": (lambda p: file(p, "a.jsonl", '{"body": "x"}\n'), "no 'text' key"),
    "text is a number": (lambda p: file(p, "a.jsonl", '{"text": 3}\n'), "a.jsonl:1"),
}


@pytest.mark.parametrize("case", sorted(DATA))
def test_bad_data(case, tmp_path, capsys):
    make, words = DATA[case]
    code, lines = call(capsys, tmp_path, "--data", make(tmp_path))
    assert code == 2
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "runs").exists()


def without(name):
    def spoil(folder):
        (folder / name).unlink()
        return folder

    return spoil


def only_bin(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def unknown_family(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    return folder


def small_embedding(folder):
    shutil.rmtree(folder)
    made = make_tiny("llama", folder)
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    last = max(max(tokenizer["model"]["vocab"].values()), *(t["id"] for t in tokenizer["added_tokens"]))
    tokenizer["added_tokens"] += [
        {"id": last + 1 + i, "content": f"<extra{i}>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i in range(2000)
    ]  # fmt: skip
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    return made


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return folder


MODELS = {
    "no such folder": (lambda f: f / "none" / "at-all", "no such model"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer"),
    "no config": (without("config.json"), "config.json"),
    "bin weights only": (only_bin, ".bin"),
    "no weights": (without("model.safetensors"), "safetensors"),
    "family unknown": (unknown_family, "lama"),
    "vocabulary too large": (small_embedding, "rows"),
    "truncated weights": (truncated, "model.safetensors"),
}


@pytest.mark.parametrize("case", sorted(MODELS))
def test_bad_models(case, tmp_path, capsys, documents):
    spoil, words = MODELS[case]
    code, lines = call(capsys, tmp_path, "--data", documents, "--model", spoil(tiny(tmp_path)))
    assert code == 2
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "runs").exists()


FLAGS = {
    "no data": ([], "no data"),
    "unknown flag": (["--batchsize", "3"], "--batchsize"),
    "unknown setting": (["--set", "lora.rnk=3"], "did you mean 'lora.rank'?"),
    "no assignment": (["--set", "seed"], "write --set key=value"),
    "too many layers": (["--data", "DOCS", "--lora-layers", "9"], "9 layers asked, the model has 3"),
    "unknown target": (["--data", "DOCS", "--set", "lora.targets=[q_prj]"], "did you mean 'q_proj'?"),
    "replay alone": (["--data", "DOCS", "--replay", "DOCS"], "replay_ratio"),
    "a path as name": (["--data", "DOCS", "--name", "../x"], "no name for a run"),
    "nothing to resume": (["--resume"], "run"),
    "resume with settings": (["--resume", "a", "--epochs", "3"], "keeps its settings"),
    "no such config": (["-c", "none.yaml"], "none.yaml"),
}


@pytest.mark.parametrize("case", sorted(FLAGS))
def test_bad_flags(case, tmp_path, capsys, documents):
    words, message = FLAGS[case]
    line = [str(documents) if word == "DOCS" else word for word in words]
    if "resume" in case:
        code = run(["cpt", "--runs-dir", str(tmp_path / "runs"), *line], debug=False)
        lines = capsys.readouterr().err.strip().splitlines()
    else:
        code, lines = call(capsys, tmp_path, *line)
    assert code == 2
    assert message in lines[-1]
    assert not (tmp_path / "runs").exists()


def test_all_wrong_settings_are_told_at_once(tmp_path, capsys):
    code, lines = call(capsys, tmp_path, "--set", "a=1", "--epochs", "none", "--set", "lora.rank=0")
    assert code == 2
    assert len(lines) == 3


def test_an_adapter_of_another_model(tmp_path, capsys, documents):
    assert call(capsys, tmp_path, "--data", documents, "--name", "a", "--lora-rank", "4")[0] == 0
    start = ["--data", documents, "--name", "b", "--adapter", tmp_path / "runs" / "a"]
    for words, message in (
        (["--model", make_tiny("qwen2", tmp_path / "other"), "--lora-rank", "4"], "the adapter is of another model"),
        (["--adapter", tmp_path], "not a whole adapter"),
        (["--adapter", "nobody"], "nobody"),
    ):
        code, lines = call(capsys, tmp_path, *start, *words)
        assert code == 2
        assert message in lines[-1]
        assert not (tmp_path / "runs" / "b").exists()


def test_where_the_text_is(tmp_path, capsys):
    rows = file(tmp_path, "a.jsonl", "".join(json.dumps({"body": f"line {i} of it"}) + "\n" for i in range(9)))
    assert call(capsys, tmp_path, "--data", rows, "--map", "text=body")[0] == 0
    code, lines = call(capsys, tmp_path, "--data", rows, "--map", "body")
    assert code == 2
    assert "write key=key" in lines[-1]


def test_an_unwritable_folder(tmp_path, capsys, documents):
    (tmp_path / "runs").write_text("a file, where a folder should be")
    code, lines = call(capsys, tmp_path, "--data", documents)
    assert code == 2
    assert "cannot write" in lines[-1]


def test_a_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made := file(tmp_path, "gone/x", "").parent)
    shutil.rmtree(made)
    assert run(["models", "list"], debug=False) == 2
    assert (
        capsys.readouterr().err
        == "error: this folder: cannot be worked in: No such file or directory (cd to one that is there)\n"
    )


def test_a_terminal_that_knows_few_letters(tmp_path):
    line = [sys.executable, "-c", "from mlxforge.cli.main import main; main()", "models", "list", "--no-hub"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0
    assert "\\u2013" in done.stdout


def test_a_traceback_only_with_debug(tmp_path):
    with pytest.raises(Exception, match="no data"):
        run(["cpt", "--plain"], debug=True)


def test_json_is_one_object_on_stdout(tmp_path, capsys, documents):
    code = run(["cpt", "--json", *GOOD[1:], "--runs-dir", str(tmp_path), "--data", str(documents), "--name", "j"], debug=False)
    out, err = capsys.readouterr()
    assert code == 0
    assert json.loads(out)["run"] == "j"
    assert "step" in err


def test_a_dry_run_prints_settings_and_plan(tmp_path, capsys, documents):
    words = ["cpt", *GOOD[1:], "--runs-dir", str(tmp_path / "runs"), "--data", str(documents), "--dry-run"]
    assert run(words, debug=False) == 0
    page = capsys.readouterr().out
    for line in ("learning_rate: 0.0003", "trained parameters:", "memory, total:", "seconds:"):
        assert line in page
    assert run([*words, "--json"], debug=False) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"config", "plan"}
    assert not (tmp_path / "runs").exists()
