"""Run directories: read as they are, however damaged; names that mean what a user thinks."""

from __future__ import annotations

import json
import os

import pytest

from mlxforge.core.config import to_dict
from mlxforge.core.errors import RunError
from mlxforge.core.files import locked
from mlxforge.core.settings import CptConfig, LoraSettings
from mlxforge.runs.record import changed_settings, files_of, find_run, is_live, list_runs, read_record, summarise, write_record


def make(folder, name, **record):
    (folder / name).mkdir()
    write_record(folder / name, {"name": name, "objective": "cpt", "status": "finished", "created": 1.7e9, **record})
    return folder / name


def test_what_is_written_is_read(tmp_path) -> None:
    run = make(tmp_path, "a", result={"loss": float("nan"), "deep": {"word": "世界"}})
    assert read_record(run)["result"] == {"loss": None, "deep": {"word": "世界"}}
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_list_is_oldest_first_and_bears_damage(tmp_path) -> None:
    make(tmp_path, "new", created=2e9, model="tiny", result={"steps": 7, "valid": {"loss": 2.0, "bpb": 1.0}})
    make(tmp_path, "old", created="2001-01-31T10:00:00", result={"valid": None, "steps": None})
    for name, content in (("cut", b'{"name": "c'), ("list", b"[]"), ("bytes", b"\xff\xfe"), ("empty", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(content)
        os.utime(tmp_path / name, (1.5e9, 1.5e9))
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "config.yaml").touch()
    os.utime(tmp_path / "lost", (1.5e9, 1.5e9))
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").touch()
    found = list_runs(tmp_path)
    assert [one.name for one in found] == ["old", "bytes", "cut", "empty", "list", "lost", "new"]
    assert {one.name for one in found if one.damaged} == {"cut", "list", "bytes", "empty", "lost"}
    assert (found[-1].steps, found[-1].loss, found[-1].bpb, found[-1].model) == (7, 2.0, 1.0, "tiny")
    assert found[0].created == "2001-01-31 10:00"
    assert list_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize("field", ["objective", "status", "created", "model", "result", "lineage"])
@pytest.mark.parametrize("value", [None, 3, [], {}, "x", {"valid": 3, "steps": "x"}])
def test_a_record_of_strange_values_is_listed(tmp_path, field, value) -> None:
    assert summarise(make(tmp_path, "a", **{field: value})).name == "a"


def test_running_without_a_process_is_stopped(tmp_path) -> None:
    run = make(tmp_path, "a", status="running")
    assert summarise(run).status == "stopped (resumable)"
    assert not (run / ".lock").exists()
    with locked(run):
        assert is_live(run)
        assert summarise(run).status == "running"
    assert not is_live(run)


def test_names_paths_and_last(tmp_path, monkeypatch) -> None:
    old, new = make(tmp_path, "handbook-1"), make(tmp_path, "handbook-2", created=1.8e9)
    assert find_run("handbook-1", tmp_path) == old
    assert find_run("run:handbook-1", tmp_path) == old
    assert find_run(str(old), tmp_path / "elsewhere") == old
    assert find_run("last", tmp_path) == new
    monkeypatch.chdir(tmp_path)
    assert find_run("./handbook-2", tmp_path).resolve() == new
    with pytest.raises(RunError, match="did you mean 'handbook-1'"):
        find_run("handbok-1", tmp_path)
    with pytest.raises(RunError, match="no runs here"):
        find_run("last", tmp_path / "elsewhere")


def test_changed_settings_are_those_and_no_others() -> None:
    assert changed_settings(to_dict(CptConfig()), "cpt") == {}
    config = to_dict(CptConfig(epochs=1, data=["x"], map={"text": "body"}, lora=LoraSettings(rank=8)))
    assert changed_settings(config, "cpt") == {"epochs": 1, "data": ["x"], "map": {"text": "body"}, "lora.rank": 8}
    assert changed_settings({"later": 1}, "unheard of") == {"later": 1}


def test_files_of_a_run_leave_out_hidden_ones(tmp_path) -> None:
    run = make(tmp_path, "a")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "weights").write_bytes(b"123")
    (run / ".lock").touch()
    (run / "gone").symlink_to("nowhere")
    assert files_of(run) == {"run.json": len((run / "run.json").read_bytes()), "checkpoints/weights": 3}
    assert json.loads((run / "run.json").read_text())["name"] == "a"
