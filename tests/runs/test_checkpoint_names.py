"""``run:NAME@best``, ``@last`` and ``@STEP``: which weights they are, of plain runs and of runs over others."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlxforge import Control, CptConfig, SftConfig, resume, train
from mlxforge.core.config import from_dict
from mlxforge.core.errors import ModelError, RunError
from mlxforge.runs.checkpoints import kept_steps, linked_step
from mlxforge.runs.lineage import content_hash, parent_of, parents_of
from mlxforge.runs.models import detect_model
from mlxforge.runs.opening import open_model, resolve_base, subject
from mlxforge.runs.record import beside, find_checkpoint, read_config, read_record

SMALL = {"max_length": 64, "batch_tokens": 256, "learning_rate": 3e-3, "sample_tokens": 0, "warmup": 0, "valid_split": 0,
         "lora": {"rank": 4, "alpha": 8.0}, "keep": 3, "save_every": 1, "schedule": "constant"}  # fmt: skip
TOKENS = mx.array([[5, 17, 300, 41, 9, 1200, 7]])


def stopped_after(steps, settings):
    """A run that was stopped after some steps: its adapter is that step's."""
    control, done = Control(), []

    def listen(event):
        if type(event).__name__ == "StepDone":
            done.append(event)
            control.finish = len(done) == steps

    return train(settings, [listen], control)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    turns = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n * 7}."}] for n in range(9)
    ]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return str(file)


def sft(data, runs, **settings):
    return from_dict(SftConfig, SMALL | {"data": [data], "runs_dir": str(runs), "steps": 3} | settings)


@pytest.fixture(scope="module")
def runs(documents, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names") / "runs"
    train(from_dict(CptConfig, SMALL | {"name": "below", "data": [str(documents)], "runs_dir": str(folder), "steps": 3}))
    train(sft(data, folder, name="over", model="run:below"))
    stopped_after(1, sft(data, folder, name="stopped", model="run:below"))
    return folder


def logits(name, runs):
    return open_model(name, runs).loaded.model(TOKENS)


def test_the_names_of_a_run(runs):
    run = runs / "below"
    assert list(kept_steps(run)) == [1, 2, 3]
    assert linked_step(run, "last") == linked_step(run, "best") == 3
    for name in ("run:below", "run:below@best", "run:below@last", "run:below@3"):
        assert (resolve_base(name, runs).adapter, resolve_base(name, runs).named) == (run, "run:below")
    second = resolve_base("run:below@2", runs)
    assert (second.adapter, second.run, second.named) == (run / "checkpoints/step-000002", run, "run:below@2")
    assert subject("below@2", None, None, runs) == subject("run:below@2", None, None, runs) == second
    assert resolve_base(f"run:{run}@2", runs / "elsewhere") == second
    assert open_model("run:below@2", runs).name == "run:below@2"


def test_a_step_of_a_run_over_another_has_the_weights_of_both(runs):
    """The same run, stopped at that step, published the same model; the folder alone holds only what was added."""
    wanted = logits("run:stopped", runs)
    assert mx.abs(logits("run:over@1", runs) - wanted).max() < 1e-4
    assert mx.abs(logits(str(runs / "over/checkpoints/step-000001"), runs) - wanted).max() < 1e-4
    assert mx.abs(logits("run:over", runs) - wanted).max() > 1e-3
    assert mx.abs(logits("run:below", runs) - wanted).max() > 1e-3


def test_a_checkpoint_is_what_another_run_starts_from(data, runs, tmp_path):
    for step, name in ((2, "from-step"), (3, "from-last")):
        ended = train(sft(data, runs, name=name, model=f"run:below@{'last' if step == 3 else step}", steps=1))
        assert read_config(ended.path)["model"] == f"run:{(runs / 'below').resolve()}" + ("@2" if step == 2 else "")
    begun = train(sft(data, runs, name="begun", adapter="run:below@2", steps=1)).path
    assert read_record(begun)["lineage"]["parent"]["path"] == str(runs / "below/checkpoints/step-000002")
    assert parent_of(begun)[:2] == (runs / "below", 2)
    assert read_config(begun)["adapter"] == f"run:{(runs / 'below').resolve()}@2"
    assert subject(None, "tiny", Path("run:below@2"), runs).adapter == runs / "below/checkpoints/step-000002"
    on = train(sft(data, runs, name="on", from_run="over@1", steps=1))
    assert parent_of(on.path)[0] == runs / "over"
    named = train(sft(data, runs, name="tiny", steps=1)).path
    again = train(sft(data, runs, name="again", from_run="last", steps=1)).path
    assert parents_of(named) == []
    assert parents_of(again) == [named]
    assert resolve_base(read_config(on.path)["adapter"], runs).adapter == resolve_base("run:over@1", runs).adapter


def test_what_is_no_checkpoint_is_told_with_those_that_are(runs, tmp_path):
    for at, what in (("7", "no checkpoint '7' was kept"), ("frist", "'frist' is no checkpoint")):
        with pytest.raises(RunError, match=what) as error:
            resolve_base(f"run:below@{at}", runs)
        assert "kept are 1, 2, 3" in str(error.value)
    with pytest.raises(RunError, match="no run 'below@'"):
        resolve_base("run:below@", runs)
    with pytest.raises(RunError, match="no run 'nobody'"):
        resolve_base("run:nobody@2", runs)
    with pytest.raises(ModelError, match="did you mean 'run:below@2'"):
        resolve_base("below@2", runs)
    odd = tmp_path / "a@2"
    shutil.copytree(runs / "below", odd)
    assert resolve_base("run:a@2", tmp_path).run == odd
    assert find_checkpoint("a@2@1", tmp_path) == (odd, "1")


def test_a_run_below_that_changed_is_told(runs, tmp_path):
    moved = tmp_path / "runs"
    for name in ("below", "over"):
        shutil.copytree(runs / name, moved / name, symlinks=True)
    shutil.copy(runs / "below/checkpoints/step-000001/adapters.safetensors", moved / "below/adapters.safetensors")
    config = (moved / "over/config.yaml").read_text().replace(str(runs.resolve()), str(moved.resolve()))
    (moved / "over/config.yaml").write_text(config)
    with pytest.raises(RunError, match="has changed since"):
        resolve_base("run:over@1", moved)
    assert resolve_base("run:over", moved).adapter == moved / "over"


def test_a_run_below_that_is_gone_is_told(runs, tmp_path):
    shutil.copytree(runs / "over", tmp_path / "over")
    config = tmp_path / "over" / "config.yaml"
    config.write_text(config.read_text().replace(str(runs.resolve()), str(tmp_path / "gone")))
    with pytest.raises(RunError, match="holds only what it adds") as error:
        resolve_base("run:over@1", tmp_path)
    assert error.value.fix == "'run:over' holds both"
    assert resolve_base("run:over", tmp_path).run == tmp_path / "over"


def test_a_checkpoint_beside_a_run_that_moved_is_found(tmp_path):
    (tmp_path / "new/below").mkdir(parents=True)
    (tmp_path / "new/below/run.json").write_text("{}")
    run, old = tmp_path / "new/over", tmp_path / "old/below"
    new = (tmp_path / "new/below").resolve()
    assert beside(f"run:{old}@20", run) == f"run:{new}@20"
    assert beside(f"run:{old}", run) == f"run:{new}"
    assert beside(str(old / "checkpoints/step-000020"), run) == str(new / "checkpoints/step-000020")
    assert beside("run:below@20", run) == "run:below@20"


def test_a_run_over_a_checkpoint_is_gone_on_with(data, runs):
    control = Control()
    control.finish = True
    settings = sft(data, runs, name="part", model="run:over@1", steps=2)
    train(settings, [], control)
    assert resume("part", runs_dir=str(runs)).status == "finished"


def test_the_base_of_a_run_is_detected(runs):
    assert detect_model("run:over@1", runs) == detect_model("tiny", runs)
    assert resolve_base(f"{runs}/below@2", runs).step == 2


def test_a_large_adapter_is_hashed_once(tmp_path, monkeypatch):
    monkeypatch.setattr("mlxforge.runs.lineage.LARGE", 3)
    file = tmp_path / "adapters.safetensors"
    file.write_bytes(b"first")
    found = content_hash(file)
    monkeypatch.setattr("mlxforge.runs.lineage.file_hash", lambda _: "read again")
    assert content_hash(file) == found == hashlib.sha256(b"first").hexdigest()
    file.write_bytes(b"second")
    assert content_hash(file) == "read again"
