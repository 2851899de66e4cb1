"""``mlxforge eval`` as a user runs it: what it shows and writes, one line for every mistake, and what a stop leaves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from mlxforge.cli.main import run
from mlxforge.core.blas import load_blas
from mlxforge.evals.report import load_report

QUICK = ("--no-retention", "--limit", "3", "--max-tokens", "6", "--latency-prompts", "1", "--metrics", "f1")
QUESTIONS = ("--data", "q=sample:handbook/questions.test.jsonl")


@pytest.fixture
def evaluated(tmp_path, monkeypatch, capfd):
    """Runs the command in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str):
        code = run(["eval", *words], debug=False)
        return (code, *capfd.readouterr())

    return call


def test_it_shows_figures_says_where_the_report_is_and_what_to_run_now(evaluated, tmp_path):
    code, out, err = evaluated("base=tiny", *QUESTIONS, *QUICK, "-o", "here")
    assert (code, "error" in err) == (0, False)
    assert "q  f1  base" in out
    assert "wrote here: report.html" in out
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"report.html", "report.md", "report.json", "rows.jsonl"}
    code, out, err = evaluated("base=tiny", *QUESTIONS, *QUICK, "-o", "here")
    assert "3 of 3 rows were answered before" in err


def test_the_next_command_gates_the_report(evaluated):
    _, out, _ = evaluated("tiny", "--data", "p=sample:handbook/pairs.test.jsonl", "--limit", "20", "-o", "here")
    (line,) = [line.removeprefix("next: ") for line in out.splitlines() if line.startswith("next: ")]
    assert line.startswith("mlxforge gate here --require 'tiny.preference_accuracy>=0.")
    assert run(shlex.split(line)[1:], debug=False) == 0


def test_json_is_one_object_with_the_folder_it_was_written_to(evaluated, tmp_path):
    code, out, _ = evaluated("tiny", *QUESTIONS, *QUICK, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["output"].startswith("reports/eval-")
    assert found["results"]["tiny"]["q"]["f1"]["n"] == 3
    assert load_report(tmp_path / found["output"]).results["tiny"]["q"]["f1"].n == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no model"),
        (("tiny",), "no data"),
        (("a=tiny", "a=tiny", *QUESTIONS), "given twice"),
        (("tiny", *QUESTIONS, "--metrics", "bpb,f2"), "unknown metric 'f2'"),
        (("tiny", *QUESTIONS, "--metrics", "preference_accuracy"), "does not fit"),
        (("tiny", "--data", "none.jsonl"), "none.jsonl"),
        (("none.gguf", *QUESTIONS), "no such file"),
        (("tiny", *QUESTIONS, "--retention", "x", "--no-retention"), "do not go together"),
        (("tiny", *QUESTIONS, "--map", "prompt"), "KEY=KEY"),
        (("tiny", *QUESTIONS, "-o", "."), "other things"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(words, says, evaluated, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    code, out, err = evaluated(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.skipif(load_blas() != "", reason="nothing to load here")
def test_a_single_model_on_a_text_has_the_fast_blas_too(tmp_path):
    """On Linux OpenBLAS must be there before MLX is: else everything takes five times as long."""
    code = (
        "from mlxforge.cli.main import run; from mlxforge.core.blas import load_blas; import sys; run(sys.argv[1:], debug=True)"
    )
    words = ["eval", "tiny", "--retention", "sample:general/retention.txt", "--dry-run", "-o", str(tmp_path / "r")]
    command = [sys.executable, "-c", f"{code}; print(load_blas())", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_keeps_what_was_answered(kind, tmp_path):
    """Ctrl-C or a kill in the middle; the same command goes on, and ends with the report of a run that never stopped."""
    words = ["tiny", "--data", "q=sample:handbook/questions.test.jsonl", *QUICK[:1], "--max-tokens", "20", "--metrics", "f1"]
    env = os.environ | {"MLXFORGE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", "from mlxforge.cli.main import main; main()", "eval", *words, "-o", "r", "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not [path for path in (tmp_path / "cache").glob("eval/*.jsonl") if path.stat().st_size > 500]:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if kind == signal.SIGINT else -9)
    assert kind == signal.SIGKILL or "the same command goes on" in err
    assert not (tmp_path / "r").exists()
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "rows were answered before" in done.stderr
    whole = subprocess.run([*command, "--fresh"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["results"] == json.loads(whole.stdout)["results"]
