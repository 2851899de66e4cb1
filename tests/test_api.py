"""The public API is pinned: a name that comes or goes is a decision, not an accident."""

from __future__ import annotations

import inspect
import json
import re

import pytest

import mlxforge

SIGNATURES = {
    "train": ["config", "listeners", "control"],
    "resume": ["run", "runs_dir", "listeners", "control"],
    "plan": ["config", "listeners", "probe", "memory"],
    "evaluate": ["settings", "listeners"],
    "gate": ["report", "require", "no_regression", "against", "confidence", "strict", "runs_dir"],
    "pipeline": ["project", "start", "only", "listeners", "control"],
    "list_runs": ["runs_dir"],
    "detect_model": ["name"],
    "plain": ["stream"],
    "dashboard": ["control"],
}


def test_exported_members():
    configs = {"CptConfig", "SftConfig", "DpoConfig", "OrpoConfig", "SimpoConfig", "CpoConfig", "KtoConfig"}
    settings = {"LoraSettings", "EvalSettings", "JudgeSettings", "ProviderSettings", "SuiteSettings"}
    assert set(mlxforge.__all__) == {"Control", "MlxforgeError", *configs, *settings, *SIGNATURES}
    assert sorted(mlxforge.__all__) == sorted(mlxforge._EXPORTS)
    assert dir(mlxforge) == sorted(mlxforge.__all__)


def test_signatures():
    for name, parameters in SIGNATURES.items():
        function = getattr(mlxforge, name)
        assert list(inspect.signature(function).parameters) == parameters
        assert function.__doc__


def test_verbs_without_the_command_line(tmp_path, documents, capsys):
    config = mlxforge.CptConfig(
        data=[str(documents)], runs_dir=str(tmp_path), name="api", steps=1, max_length=64, sample_tokens=0
    )
    ended = mlxforge.train(config, listeners=[mlxforge.plain()])
    assert "finished" in capsys.readouterr().out
    assert [run.name for run in mlxforge.list_runs(str(tmp_path))] == ["api"]
    assert ended.result["steps"] == 1
    assert mlxforge.detect_model("tiny")["family"] == "llama"


def test_a_plan_fits_the_memory_that_is_given(documents):
    config = mlxforge.CptConfig(data=[str(documents)], steps=1, sample_tokens=0)
    free = mlxforge.plan(config)
    held = mlxforge.plan(config, memory=free["memory"]["total"] * 3 // 4)
    assert held["fit"]["changes"]
    assert held["memory"]["total"] <= free["memory"]["total"] * 3 // 4
    assert "fit" not in free


def test_an_evaluation_and_its_gate(tmp_path):
    (tmp_path / "asked.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}) + "\n"
    )
    heard = []
    report = mlxforge.evaluate(
        mlxforge.EvalSettings(
            models="base=tiny", data=str(tmp_path / "asked.jsonl"), metrics=["exact_match"], retention="", max_tokens=4,
            output=str(tmp_path / "report"),
        ),
        listeners=[heard.append],
    )  # fmt: skip
    reached = report.results["base"]["asked"]["exact_match"].value
    assert heard
    assert json.loads((tmp_path / "report" / "report.json").read_text())["results"]
    assert mlxforge.gate(tmp_path / "report", [f"base.exact_match>={reached}"])["passed"]
    assert not mlxforge.gate(str(tmp_path / "report"), "base.exact_match>2")["passed"]
    with pytest.raises(mlxforge.MlxforgeError, match="limit: 0 is below 1"):
        mlxforge.EvalSettings(models=["tiny"], limit=0)


def test_a_pipeline_is_done_once(tmp_path, documents):
    text = "cpt: {max_length: 64, batch_tokens: 256, sample_tokens: 0, steps: 1, lora: {rank: 2, alpha: 4}, data: [documents]}"
    (tmp_path / "forge.yaml").write_text(f"name: p\n{text}\n")
    (tmp_path / "documents").symlink_to(documents)
    heard = []
    first = mlxforge.pipeline(tmp_path, listeners=[heard.append])
    assert [(one.stage, one.status, one.done) for one in first.stages] == [("cpt", "done", True)]
    assert {"StageStarted", "RunEnded", "StageEnded"} <= {type(event).__name__ for event in heard}
    assert [one.done for one in mlxforge.pipeline(str(tmp_path / "forge.yaml")).stages] == [False]
    with pytest.raises(mlxforge.MlxforgeError, match="no such project file"):
        mlxforge.pipeline(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"learning_rate": -1.0}, "learning_rate: -1.0"),
        ({"optimizer": "adm"}, "'adm' is not one of adamw"),
        ({"steps": "x"}, "steps: 'x' is not integer"),
        ({"seed": 2**40}, "seed: "),
    ],
)
def test_a_config_made_in_python_is_checked(wrong, line):
    with pytest.raises(mlxforge.MlxforgeError, match=re.escape(line)):
        mlxforge.train(mlxforge.CptConfig(data=["x"], **wrong))


def test_runs_without_a_name_do_not_meet(tmp_path, documents, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "now")
    config = mlxforge.CptConfig(data=[str(documents)], runs_dir=str(tmp_path), steps=1, max_length=64, sample_tokens=0)
    assert [mlxforge.train(config).path.name for _ in range(2)] == ["cpt-now", "cpt-now-2"]


def test_a_map_is_for_the_own_data_alone(tmp_path, documents):
    rows = [json.dumps({"body": path.read_text()}) for path in sorted(documents.iterdir())]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    config = mlxforge.CptConfig(
        data=[str(tmp_path / "own.jsonl")], map={"text": "body"}, replay="sample:general/replay.jsonl", replay_ratio=0.5,
        runs_dir=str(tmp_path / "runs"), steps=1, max_length=64, sample_tokens=0,
    )  # fmt: skip
    assert mlxforge.train(config).status == "finished"
