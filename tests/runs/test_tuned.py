"""``--prefer-tuned``: the newest run of a name that passed its gate, and why others are not taken."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from click.testing import CliRunner

from mlxforge import CptConfig, train
from mlxforge.cli.fuse import fuse
from mlxforge.cli.generate import generate
from mlxforge.cli.runs import runs as command
from mlxforge.core.config import from_dict
from mlxforge.core.errors import ConfigError, MlxforgeError, RunError
from mlxforge.core.files import locked
from mlxforge.runs.record import list_runs, write_record
from mlxforge.runs.tuned import prefer_tuned


def make(folder, name, created, gate=None, objective="sft", **record):
    run = folder / name
    run.mkdir(parents=True)
    write_record(
        run, {"name": name, "objective": objective, "status": "finished", "created": created, "ended": created, **record}
    )
    (run / "adapters.safetensors").touch()
    if gate is not None:
        (run / "gate.json").write_text(gate if isinstance(gate, str) else json.dumps(gate))
    return run


PASSED = {"passed": True, "requirements": [], "time": 100.0}


def test_the_newest_that_passed(tmp_path):
    make(tmp_path, "formal", 1.0, PASSED)
    make(tmp_path, "formal-2", 2.0, PASSED)
    make(tmp_path, "formal-3", 3.0, {**PASSED, "passed": False})
    make(tmp_path, "formal-4", 4.0)
    make(tmp_path, "formal-extra", 5.0, PASSED)
    make(tmp_path, "pairs", 6.0, PASSED, objective="dpo")
    assert prefer_tuned("formal", tmp_path) == prefer_tuned("run:formal", tmp_path) == "formal-2"
    assert prefer_tuned("sft", tmp_path) == "formal-extra"
    assert prefer_tuned("dpo", tmp_path) == "pairs"


CASES = {
    "no gate yet": (None, {}),
    "failed sft.exact_match>=0.6": (
        {"passed": False, "requirements": [{"text": "sft.exact_match>=0.6", "passed": False}, {"text": "b", "passed": True}]},
        {},
    ),
    "gate.json is damaged": ("{", {}),
    "trained on since its gate": ({**PASSED, "time": "1970-01-01T00:00:50+00:00"}, {"ended": 60.0}),
}


@pytest.mark.parametrize(("why", "case"), CASES.items(), ids=list(CASES))
def test_why_a_run_is_not_taken_is_told(why, case, tmp_path):
    gate, record = case
    make(tmp_path, "a", 1.0, gate, **record)
    with pytest.raises(RunError, match="no run of 'a' has passed its gate") as error:
        prefer_tuned("a", tmp_path)
    assert f"a ({why})" in error.value.what


def test_a_run_that_is_not_whole_is_not_taken(tmp_path):
    run = make(tmp_path, "a", 1.0, PASSED)
    for state, why in (
        (locked(run), "being trained now"),
        (nullcontext((run / "adapters.safetensors").unlink()), "no adapter"),
    ):
        with state, pytest.raises(RunError, match=why):
            prefer_tuned("a", tmp_path)
    with pytest.raises(RunError, match="no run is called 'b'"):
        prefer_tuned("b", tmp_path)


@pytest.fixture(scope="module")
def runs(documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    settings = {"data": [str(documents)], "runs_dir": str(folder), "name": "mill", "steps": 1, "sample_tokens": 0}
    settings |= {"max_length": 64, "batch_tokens": 256, "warmup": 0, "lora": {"rank": 2}}
    run = train(from_dict(CptConfig, settings)).path
    (run / "gate.json").write_text(json.dumps({"passed": True}))
    return folder


def test_commands_take_it_and_say_which(runs, tmp_path):
    done = CliRunner().invoke(
        generate, ["--raw", "The", "--prefer-tuned", "cpt", "--runs-dir", str(runs), "--max-tokens", "2", "--json"]
    )
    assert json.loads(done.stdout)["model"] == "run:mill"
    assert "run:mill" in done.stderr
    done = CliRunner().invoke(
        fuse, ["--prefer-tuned", "mill", "--runs-dir", str(runs), "-o", str(tmp_path / "fused"), "--json"]
    )
    assert json.loads(done.stdout)["kind"] == "lora"


def test_two_models_are_refused(runs):
    for verb, words in ((generate, ["Hi", "--model", "tiny"]), (fuse, ["mill", "-o", "x"])):
        done = CliRunner().invoke(verb, [*words, "--prefer-tuned", "mill", "--runs-dir", str(runs)])
        assert isinstance(done.exception, ConfigError)
        assert "two models are named" in str(done.exception)


@pytest.mark.parametrize("option", ["--prefer-tuned", "--model"])
def test_an_empty_name_is_not_the_last_run(runs, option):
    """As a script has it whose variable is not set."""
    done = CliRunner().invoke(generate, ["Hi", option, "", "--runs-dir", str(runs)])
    assert isinstance(done.exception, MlxforgeError)
    assert not done.stdout


def test_the_list_of_runs_says_what_passed(tmp_path):
    make(tmp_path, "a", 1.0, PASSED)
    make(tmp_path, "b", 2.0, {**PASSED, "passed": False})
    make(tmp_path, "c", 3.0)
    assert [run.gate for run in list_runs(tmp_path)] == [True, False, None]
    text = CliRunner().invoke(command, ["list", "--runs-dir", str(tmp_path)]).stdout
    assert [line.split()[-1] for line in text.splitlines()[:3]] == ["gate", "passed", "failed"]
    assert json.loads(CliRunner().invoke(command, ["last", "--runs-dir", str(tmp_path), "--json"]).stdout)["name"] == "c"
