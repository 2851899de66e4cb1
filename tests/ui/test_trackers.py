"""Trackers: the numbers of a run are found again in what the real packages wrote; a failing one never ends a run."""

from __future__ import annotations

import json
import sqlite3
import struct
from typing import get_args, get_type_hints

import pytest

from mlxforge import Control, CptConfig, resume, train
from mlxforge.cli.main import run as command
from mlxforge.core import events as ev
from mlxforge.core.config import from_dict
from mlxforge.core.errors import MissingExtraError
from mlxforge.core.settings import TrainSettings
from mlxforge.core.trackers import PACKAGES
from mlxforge.ui.trackers import TRACKERS, Trackers, identity, numbers

SECRET = "hf_0123456789abcdefghijklmnopqrstuvwxyz"
SECRETS = ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "MY_PASSWORD")


@pytest.fixture
def secrets(monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, SECRET)


def config(documents, runs, **settings):
    values = {
        "data": [str(documents)],
        "runs_dir": str(runs),
        "name": "followed",
        "steps": 3,
        "eval_every": 1,
        "sample_tokens": 4,
    }
    values |= {"max_length": 64, "batch_tokens": 256, "warmup": 0, "lora": {"rank": 2}}
    return from_dict(CptConfig, values | settings)


def wanted(events):
    """(key, step) -> value of all that the events told."""
    kinds = (ev.StepDone, ev.Evaluated, ev.Scored)
    return {(key, event.step): value for event in events if isinstance(event, kinds) for key, value in numbers(event).items()}


def check(found, events):
    known = wanted(events)
    assert ("train/loss", 3) in known
    assert ("valid/bpb", 0) in known
    assert set(found) == set(known)
    assert all(found[key] == pytest.approx(value, rel=1e-6) for key, value in known.items())


def check_no_secret(folder):
    held = [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not held


def scalars(folder):
    """What TensorBoard's files hold: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found, purged = {}, []
    for file in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            if event.HasField("session_log"):
                purged.append(event.step)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[value.tag, event.step] = value.simple_value
    return found, purged


def test_one_table():
    hints = get_type_hints(TrainSettings, include_extras=False)
    assert set(TRACKERS) == set(PACKAGES) == set(get_args(get_args(hints["trackers"])[0]))


def test_tensorboard_has_the_numbers_of_the_run(documents, tmp_path, secrets):
    pytest.importorskip("tensorboardX")
    events = []
    run = train(config(documents, tmp_path / "runs", trackers=["tensorboard"]), [events.append]).path
    found, purged = scalars(run / "tensorboard")
    check(found, events)
    assert not purged
    check_no_secret(tmp_path)


def test_a_resumed_run_takes_back_what_it_does_again(documents, tmp_path):
    pytest.importorskip("tensorboardX")
    control = Control()
    control.finish = True
    run = train(config(documents, tmp_path / "runs", trackers=["tensorboard"]), [], control).path
    events = []
    resume("followed", runs_dir=str(tmp_path / "runs"), listeners=[events.append])
    found, purged = scalars(run / "tensorboard")
    assert purged == [2]
    assert {step for key, step in found if key == "train/loss"} == {1, 2, 3}


def test_the_command_line_takes_them(documents, tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    line = (
        f"cpt --data {documents} --runs-dir {tmp_path} -n a --steps 1 --sample-tokens 0 --max-length 64 --trackers tensorboard"
    )
    assert command([*line.split(), "--json"], debug=False) == 0
    assert scalars(tmp_path / "a" / "tensorboard")[0]
    assert command([*line.split()[:-1], "weights"], debug=False) == 2
    assert "tensorboard" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package")
    with pytest.raises(MissingExtraError, match="no_such_package") as error:
        train(config("nowhere", tmp_path / "runs", trackers=["wandb"]))
    assert "mlxforge[wandb]" in str(error.value)
    assert not (tmp_path / "runs").exists()


class Broken:
    """A tracker that works until the second step."""

    def __init__(self, event):
        self.calls = []

    def log(self, step, values):
        if step == 2:
            raise ConnectionError("https://user:password@tracker.example/ does not answer\nmore")

    def end(self, status):
        raise AssertionError("left out long ago")


def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(documents, tmp_path, monkeypatch):
    monkeypatch.setitem(TRACKERS, "mlflow", Broken)
    monkeypatch.setitem(PACKAGES, "mlflow", "json")
    events = []
    assert train(config(documents, tmp_path, trackers=["mlflow"]), [events.append]).status == "finished"
    told = [event.message for event in events if isinstance(event, ev.Warned) and "mlflow" in event.message]
    assert told == ["mlflow does not follow the run any more: ConnectionError: https://…@tracker.example/ does not answer"]


def test_one_that_cannot_be_opened_is_told_too(tmp_path, monkeypatch):
    def refuse(event):
        raise OSError("no room")

    monkeypatch.setitem(TRACKERS, "wandb", refuse)
    heard = []
    follow = Trackers(heard.append)
    follow(ev.RunStarted(run="a", objective="cpt", path=str(tmp_path), config={"trackers": ["wandb"]}, plan={}))
    follow(ev.Scored(step=1, scores={"exact_match": 0.5}))
    assert [event.message for event in heard] == ["wandb does not follow the run any more: OSError: no room"]


def test_what_is_no_number_is_left_out():
    step = {
        "epoch": 0.5,
        "learning_rate": 1e-3,
        "grad_norm": float("inf"),
        "tokens": 8,
        "trained": 8,
        "slots": 8,
        "seconds": 0.0,
    }
    found = numbers(ev.StepDone(step=1, steps=2, loss=float("nan"), metrics={"accuracy": 0.5}, **step))
    assert set(found) == {"train/learning_rate", "train/epoch", "train/memory_peak", "train/accuracy"}
    text = numbers(ev.Evaluated(step=1, name="valid", loss=1.0, perplexity=None, bpb=None, tokens=1, seconds=1.0))
    assert text == {"valid/loss": 1.0}


def test_a_run_keeps_its_identity_when_it_moves(tmp_path):
    found = []
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.json").write_text(json.dumps({"created": 5.0}))
        found.append(identity(ev.RunStarted(run="a", objective="cpt", path=str(tmp_path / folder), config={}, plan={})))
    assert found[0] == found[1]
    assert found[0] != identity(ev.RunStarted(run="b", objective="cpt", path=str(tmp_path / "old"), config={}, plan={}))


def twice(documents, runs, tracker):
    """A run that is stopped after its first step and then resumed: its events."""
    control, events = Control(), []
    control.finish = True
    train(config(documents, runs, trackers=[tracker]), [events.append], control)
    resume("followed", runs_dir=str(runs), listeners=[events.append])
    assert not [event for event in events if isinstance(event, ev.Warned) and tracker in event.message]
    return events


@pytest.mark.slow
def test_mlflow_has_the_numbers_of_the_run(documents, tmp_path, secrets, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    events = twice(documents, tmp_path / "runs", "mlflow")
    (run,) = [folder.parent for folder in (tmp_path / "mlruns").glob("*/*/params")]
    found = {}
    for file in (run / "metrics").rglob("*"):
        for line in file.read_text().splitlines() if file.is_file() else ():
            _, value, step = line.split()[:3]
            found[str(file.relative_to(run / "metrics")), int(step)] = float(value)
    check(found, events)
    assert (run / "params" / "lora.rank").read_text() == "2"
    check_no_secret(tmp_path)


@pytest.mark.slow
def test_trackio_has_the_numbers_of_the_run(documents, tmp_path, secrets, monkeypatch, capfd):
    pytest.importorskip("trackio")
    import trackio.utils

    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    for module in ("sqlite_storage", "run"):
        monkeypatch.setattr(f"trackio.{module}.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    events = twice(documents, tmp_path / "runs", "trackio")
    (file,) = (tmp_path / "trackio").glob("*.db")
    rows = sqlite3.connect(file).execute("select run_name, step, metrics from metrics").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    check({(key, step): value for _, step, text in rows for key, value in json.loads(text).items()}, events)
    assert trackio.context_vars.current_run.get() is None  # at exit it would print
    assert "trackio" not in capfd.readouterr().out
    check_no_secret(tmp_path)


@pytest.mark.slow
def test_wandb_has_the_numbers_of_the_run(documents, tmp_path, secrets, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET.ljust(40, "0"))
    events = twice(documents, tmp_path / "runs", "wandb")
    files = sorted((tmp_path / "runs/followed/wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1  # the same run, gone on with
    found = {}
    for row in (row for file in files for row in history(file)):
        step = row.pop("step")
        found |= {(key, step): value for key, value in row.items() if not key.startswith("_")}
    check(found, events)
    check_no_secret(tmp_path)


def history(file):
    """The logged rows of an offline file: LevelDB's log format, blocks of 32 kB after a head of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, b""
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, parts = wandb_internal_pb2.Record.FromString(parts), b""
            if record.WhichOneof("record_type") == "history":
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
