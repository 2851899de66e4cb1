"""kill -9 at any moment, then --resume: the same bits as a run that never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import mlx.core as mx
import pytest

from mlxforge import CptConfig, MlxforgeError, resume, train
from mlxforge.core.config import from_dict
from mlxforge.core.eventlog import replay
from mlxforge.core.events import StepDone
from mlxforge.core.files import embedded

# Dropout and noise are drawn at random in every step; an evaluation or a save at nearly each.
SETTINGS = {
    "max_length": 64, "batch_tokens": 256, "learning_rate": 3e-3, "sample_tokens": 2, "steps": 6, "eval_every": 2,
    "save_every": 1, "keep": 2, "neftune_alpha": 5.0, "accumulate": 2, "lora": {"rank": 2, "alpha": 4.0, "dropout": 0.2},
}  # fmt: skip

# Runs until the n-th file operation of a kind, and dies there as kill -9 would have it: nothing is cleaned up.
KILLED = """
import os, signal, sys
from mlxforge import CptConfig, train
from mlxforge.core.config import from_dict
import json
settings, operation, count = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
plain, seen = getattr(os, operation), 0
def deadly(*args, **kwargs):
    global seen
    seen += 1
    if seen == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args, **kwargs)
setattr(os, operation, deadly)
train(from_dict(CptConfig, settings))
"""


def settings(documents, runs, **changes):
    return SETTINGS | {"data": [str(documents)], "runs_dir": str(runs), "name": "a"} | changes


@pytest.fixture(scope="module")
def uninterrupted(documents, tmp_path_factory):
    return train(from_dict(CptConfig, settings(documents, tmp_path_factory.mktemp("whole"))))


def arrays(path):
    return dict(mx.load(str(path)))


def assert_same_end(first, second):
    for name in ("adapters.safetensors", "last/adapters.safetensors", "last/optimizer.safetensors"):
        one, two = arrays(first / name), arrays(second / name)
        assert one.keys() == two.keys()
        assert all(mx.array_equal(one[key], two[key]).item() for key in one), name


def killed_at(documents, runs, operation, count, **changes):
    arguments = [json.dumps(settings(documents, runs, **changes)), operation, str(count)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


# Inside the first save, between the rename and the links, in the middle of a later save, at the publishing of weights.
POINTS = [("fsync", 9), ("replace", 8), ("fsync", 40), ("replace", 17)]
# From the 9th on: before that there is no run to resume yet.
MORE = [(operation, count) for operation in ("fsync", "replace") for count in (10, 12, 15, 21, 24, 28, 31)]


def losses(ended):
    return [(e.step, e.loss, e.grad_norm) for e in replay(ended.path / "events.jsonl") if isinstance(e, StepDone)]


def check_kill(documents, tmp_path, uninterrupted, operation, count):
    killed_at(documents, tmp_path, operation, count)
    ended = resume("a", runs_dir=str(tmp_path))
    assert ended.status == "finished"
    assert losses(ended) == losses(uninterrupted)
    assert_same_end(uninterrupted.path, ended.path)
    figures = ("steps", "tokens", "trained_tokens", "valid", "before", "best", "train_loss")
    assert {key: ended.result[key] for key in figures} == {key: uninterrupted.result[key] for key in figures}
    assert [path.name for path in ended.path.iterdir() if path.name.startswith(".")] == [".lock"]


@pytest.mark.parametrize(("operation", "count"), POINTS)
def test_a_killed_run_ends_with_the_same_bits(documents, tmp_path, uninterrupted, operation, count):
    check_kill(documents, tmp_path, uninterrupted, operation, count)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "count"), MORE)
def test_killed_anywhere(documents, tmp_path, uninterrupted, operation, count):
    check_kill(documents, tmp_path, uninterrupted, operation, count)


# A kill in the middle of the run is the same law as the late one, at a second place.
@pytest.mark.parametrize("count", [26, pytest.param(9, marks=pytest.mark.slow)])
def test_a_kill_between_evaluations_keeps_patience_and_the_last_evaluation(documents, tmp_path, count):
    """Early stop and the evaluation of the last step come when they would have come."""
    changes = {"patience": 1, "eval_every": 4, "save_every": 1, "learning_rate": 0.05, "steps": 9, "sample_tokens": 0}
    whole = train(from_dict(CptConfig, settings(documents, tmp_path / "whole", **changes)))
    killed_at(documents, tmp_path, "replace", count, **changes)
    ended = resume("a", runs_dir=str(tmp_path))
    assert losses(ended) == losses(whole)
    assert ended.result["best"] == whole.result["best"]
    assert_same_end(whole.path, ended.path)


@pytest.fixture(scope="module")
def killed(documents, tmp_path_factory):
    """A run that was killed in a late save, over a model of its own."""
    folder = tmp_path_factory.mktemp("killed")
    shutil.copytree(documents, folder / "data")
    shutil.copytree(embedded("data", "tiny"), folder / "model")
    killed_at(folder / "data", folder, "replace", 26, model=str(folder / "model"))
    return folder


@pytest.fixture
def stopped(killed, tmp_path):
    """A copy of that run."""
    return shutil.copytree(killed / "a", tmp_path / "a", symlinks=True)


def test_another_tokenizer_is_refused(killed, stopped):
    file = killed / "model" / "tokenizer.json"
    tokenizer = json.loads(before := file.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-50]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(MlxforgeError, match="the model changed since the run began"):
        resume("a", runs_dir=str(stopped.parent))
    file.write_text(before)


def test_a_run_is_resumed_from_another_folder(documents, tmp_path, monkeypatch, uninterrupted):
    monkeypatch.chdir(documents.parent)
    killed_at(documents.name, tmp_path, "replace", 20)
    monkeypatch.chdir(tmp_path)
    assert_same_end(uninterrupted.path, resume(str(tmp_path / "a")).path)


def test_a_truncated_checkpoint_is_named_and_the_one_before_goes_on(stopped, uninterrupted):
    damaged = stopped / "last" / "adapters.safetensors"
    damaged = damaged.resolve()
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(MlxforgeError, match=r"the checkpoint is damaged: adapters\.safetensors has") as caught:
        resume("a", runs_dir=str(stopped.parent))
    assert "ln -sfn checkpoints/step-" in caught.value.fix
    subprocess.run(caught.value.fix.partition(": ")[2], shell=True, check=True)
    ended = resume("a", runs_dir=str(stopped.parent))
    assert_same_end(uninterrupted.path, ended.path)


def test_a_missing_checkpoint_is_named(stopped):
    shutil.rmtree((stopped / "last").resolve())
    with pytest.raises(MlxforgeError, match="the checkpoint is damaged"):
        resume("a", runs_dir=str(stopped.parent))


def test_other_data_is_refused(killed, stopped):
    new = killed / "data" / "new.txt"
    new.write_text("One more document that was not there.\n")
    with pytest.raises(MlxforgeError, match="the data changed since the run began"):
        resume("a", runs_dir=str(stopped.parent))
    new.unlink()


def test_a_finished_run_is_not_resumed(uninterrupted):
    with pytest.raises(MlxforgeError, match="this run is finished"):
        resume("a", runs_dir=str(uninterrupted.path.parent))


def test_a_full_disk_leaves_the_earlier_state(documents, tmp_path, monkeypatch):
    plain, calls = os.replace, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        return plain(*args, **kwargs)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MlxforgeError, match="No space left on device"):
        train(from_dict(CptConfig, settings(documents, tmp_path)))
    monkeypatch.setattr(os, "replace", plain)
    assert resume("a", runs_dir=str(tmp_path)).status == "finished"
