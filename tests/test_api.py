"""The public API is pinned: a name that comes or goes is a decision, not an accident."""

from __future__ import annotations

import inspect

import mlxforge

SIGNATURES = {
    "train": ["config", "listeners", "control"],
    "resume": ["run", "runs_dir", "listeners", "control"],
    "plan": ["config", "listeners"],
    "list_runs": ["runs_dir"],
    "detect_model": ["name"],
    "plain": ["stream"],
    "dashboard": ["control"],
}


def test_exported_members():
    assert set(mlxforge.__all__) == {"Control", "CptConfig", "LoraSettings", "MlxforgeError", *SIGNATURES}
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
