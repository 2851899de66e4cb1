"""A run from end to end on the shipped tiny model: what it leaves, what it says, how it is reloaded."""

from __future__ import annotations

import json
import shlex
import subprocess

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import msgspec
import pytest
from tokenizers import Tokenizer

from mlxforge import Control, CptConfig, MlxforgeError, plan, train
from mlxforge.core.config import from_dict
from mlxforge.core.errors import Interrupted, RunFailed
from mlxforge.core.eventlog import replay
from mlxforge.core.events import Evaluated, Noted, RunEnded, RunStarted, Sampled, Saved, StepDone
from mlxforge.core.files import embedded
from mlxforge.data.sources import Source
from mlxforge.data.tokens import prepare, split_by_hash
from mlxforge.data.windows import windows
from mlxforge.runs.forecast import PARTS
from mlxforge.runs.text import make_encoder

RESULT_KEYS = {
    "run", "objective", "status", "steps", "tokens", "trained_tokens", "train_loss", "valid", "before", "retention", "best",
    "task", "tokens_per_second", "peak_memory_bytes",
}  # fmt: skip
SMALL = {
    "max_length": 64, "batch_tokens": 512, "learning_rate": 3e-3, "sample_tokens": 4, "warmup": 0,
    "lora": {"rank": 4, "alpha": 8.0},
}  # fmt: skip


def config(documents, runs, **settings):
    return from_dict(CptConfig, SMALL | {"data": [str(documents)], "runs_dir": str(runs), "name": "a", "steps": 4} | settings)


@pytest.fixture(scope="module")
def finished(documents, tmp_path_factory):
    events = []
    runs = tmp_path_factory.mktemp("runs")
    general = str(embedded("data", "general", "retention.txt"))
    settings = config(documents, runs, steps=6, eval_every=2, keep=1, retention=general, valid_split=0.2)
    return train(settings, [events.append]), events


def test_the_result_is_the_contract(finished):
    ended, _ = finished
    record = json.loads((ended.path / "run.json").read_text())
    assert set(ended.result) >= RESULT_KEYS
    assert (record["name"], record["objective"], record["status"], record["result"]) == ("a", "cpt", "finished", ended.result)
    for name in ("valid", "before"):
        assert set(ended.result[name]) == {"loss", "perplexity", "bpb"}
    assert ended.result["valid"]["loss"] < ended.result["before"]["loss"]
    assert set(ended.result["retention"]) == {"before", "after"}
    assert ended.result["steps"] == 6
    assert ended.result["peak_memory_bytes"] > 1_000_000
    lineage = record["lineage"]
    assert lineage["packages"]["mlx-lm"]
    assert set(lineage["data"]) == {"train", "valid", "retention"}


def test_the_run_tells_its_story(finished):
    ended, events = finished
    kinds = [type(event) for event in events]
    assert kinds[-1] is RunEnded
    assert kinds.count(RunStarted) == 1
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events if isinstance(e, Evaluated) and e.name == "retention"] == [0, 2, 4, 6]
    assert any(isinstance(event, Sampled) for event in events)
    logged = list(replay(ended.path / "events.jsonl"))
    started = kinds.index(RunStarted)
    assert [msgspec.to_builtins(e) for e in logged] == [msgspec.to_builtins(e) for e in events[started:]]


def test_best_and_last_are_kept_and_the_rest_pruned(finished):
    ended, events = finished
    kept = {path.name for path in (ended.path / "checkpoints").iterdir()}
    best, last = (ended.path / name for name in ("best", "last"))
    assert kept == {best.resolve().name, last.resolve().name}
    assert best.resolve().name == f"step-{ended.result['best']['step']:06d}"
    assert (ended.path / "adapters.safetensors").read_bytes() == (best / "adapters.safetensors").read_bytes()
    assert sum(isinstance(event, Saved) for event in events) >= 3


def test_mlx_lm_loads_the_adapter_and_gives_the_same_loss(finished, documents, tmp_path):
    """The loss that the run reported for its best step is the loss of mlx-lm's own model with the adapter loaded."""
    ended, _ = finished
    folder = embedded("data", "tiny")
    model, tokenizer = mlx_lm.load(str(folder), adapter_path=str(ended.path))
    model.set_dtype(mx.float32)
    encoder = make_encoder(tokenizer, folder, Tokenizer.from_file(str(folder / "tokenizer.json")))
    _, held = split_by_hash(prepare([Source(str(documents))], encoder, cache=tmp_path), 0.2)
    total = count = 0
    rows = windows(held, SMALL["max_length"])
    for i in range(len(rows)):
        ids = mx.array(rows[i].tokens.astype("int32"))[None]
        total += nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    assert count > 50
    assert ended.result["valid"]["loss"] == pytest.approx(total / count, rel=2e-4)


def test_mlx_lm_generates_with_the_adapter(finished):
    """The commands that the end of a run offers, mlxforge's own and mlx-lm's."""
    ended, _ = finished
    own, mlx_lm = (shlex.split(line.replace('"..."', '"The mill"')) for line in ended.next_steps[:2])
    assert "--adapter-path" in mlx_lm
    assert own[1:3] == ["generate", "--runs-dir"]
    theirs, ours = (
        subprocess.run([*words, "--max-tokens", "8"], capture_output=True, text=True, check=True).stdout
        for words in (mlx_lm, own)
    )
    assert "Generation: " in theirs
    assert len(ours.split()) > 1


def weights(ended):
    return dict(mx.load(str(ended.path / "last" / "adapters.safetensors")))


def same(first, second):
    assert first.keys() == second.keys()
    return all(mx.array_equal(first[key], second[key]).item() for key in first)


def test_same_seed_same_run_and_another_seed_another(documents, tmp_path):
    runs = [train(config(documents, tmp_path, name=name, seed=seed, steps=3)) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


def test_every_token_of_long_documents_is_trained_every_epoch(tmp_path):
    text = (embedded("data", "general", "retention.txt").read_text()[:6000] + "\n") * 1
    (tmp_path / "long.txt").write_text(text)
    tokens = len(Tokenizer.from_file(str(embedded("data", "tiny", "tokenizer.json"))).encode(text).ids)
    settings = config(tmp_path / "long.txt", tmp_path / "runs", steps=None, epochs=2, valid_split=0)
    assert train(settings).result["trained_tokens"] == 2 * (tokens + 1)  # the end of the document is trained too


def test_a_wish_to_finish_saves_and_can_be_resumed(documents, tmp_path):
    control = Control()

    def ask(event):
        if isinstance(event, StepDone) and event.step == 2:
            control.finish = True

    ended = train(config(documents, tmp_path), [ask], control)
    assert (ended.status, ended.result["steps"]) == ("interrupted", 2)
    assert (ended.path / "last").resolve().name == "step-000002"
    assert "--resume a" in ended.next_steps[0]


def test_ctrl_c_finishes_the_step_and_saves(documents, tmp_path):
    import os
    import signal

    def press(event):
        if isinstance(event, StepDone) and event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="after step 2") as caught:
        train(config(documents, tmp_path), [press])
    assert caught.value.exit_code == 130
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "a" / "last").resolve().name == "step-000002"


def test_a_run_that_diverges_goes_back_to_a_good_state(documents, tmp_path):
    """The first update spoils the weights and is saved before the next step can tell: it must not be what is left."""
    events = []
    settings = config(documents, tmp_path, learning_rate=1e30, clip_norm=None, steps=20, max_skipped=2, save_every=1)
    with pytest.raises(RunFailed, match="the state of step 0 is kept") as caught:
        train(settings, [events.append])
    assert caught.value.exit_code == 1
    skipped = [event.step for event in events if isinstance(event, StepDone) and event.skipped]
    assert len(skipped) == 2
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (record["status"], record["result"]["skipped_updates"]) == ("failed", 2)
    for folder in (tmp_path / "a", tmp_path / "a" / "last"):
        saved = mx.load(str(folder / "adapters.safetensors"))
        assert all(mx.max(mx.abs(array)).item() < 10 for array in saved.values())
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["step-000000"]
    assert "--resume" not in " ".join(events[-1].next_steps)


def test_the_last_step_is_evaluated_before_it_is_saved(documents, tmp_path):
    """save_every meets the last step, eval_every does not: the run's adapter is still its best."""
    ended = train(config(documents, tmp_path, steps=5, eval_every=3, save_every=5, valid_split=0.2))
    best = (ended.path / "best").resolve().name
    assert best == f"step-{ended.result['best']['step']:06d}"
    assert (ended.path / "adapters.safetensors").read_bytes() == (ended.path / "best" / "adapters.safetensors").read_bytes()
    assert ended.result["best"]["step"] == 5


def test_patience_stops_a_run_that_gets_worse(documents, tmp_path):
    ended = train(config(documents, tmp_path, steps=30, eval_every=1, patience=2, learning_rate=0.3, valid_split=0.2))
    assert ended.status == "finished"
    assert ended.result["steps"] < 30
    assert ended.result["valid"]["loss"] == ended.result["best"]["loss"]


def test_a_name_is_used_once(documents, tmp_path):
    train(config(documents, tmp_path, steps=1))
    with pytest.raises(MlxforgeError, match="a run of this name exists"):
        train(config(documents, tmp_path, steps=1))


def test_a_dry_run_plans_and_writes_nothing(documents, tmp_path):
    found = plan(config(documents, tmp_path / "runs", steps=None, epochs=2))
    assert not (tmp_path / "runs").exists()
    ended = train(config(documents, tmp_path / "runs", steps=None, epochs=2))
    assert found["steps"] == ended.result["steps"]
    assert found["trained_parameters"] == sum(array.size for array in weights(ended).values())
    assert set(found["memory"]) == {*PARTS, "total"}
    assert found["seconds"] > 0
    assert 0 <= found["padding"] < 0.5


def test_an_adapter_goes_on_with_its_own_structure(documents, tmp_path, finished):
    """``from_run`` is the run's base and its adapter; lora settings of the new run that differ are said to have no effect."""
    first, _ = finished
    heard = []
    again = train(
        config(documents, tmp_path, from_run=str(first.path), steps=1, lora={"rank": 8, "alpha": 8.0}), [heard.append]
    )
    start, kept = (json.loads((run / "adapter_config.json").read_text())["lora_parameters"] for run in (first.path, again.path))
    assert kept == start
    assert any("keeps its own rank 4" in event.message for event in heard if isinstance(event, Noted))
    record = json.loads((again.path / "run.json").read_text())
    assert record["lineage"]["parent"]["path"] == str(first.path)
    assert again.result["before"] != first.result["before"], "it starts from the trained weights"


def test_a_run_and_another_base_do_not_go_together(documents, tmp_path, finished):
    with pytest.raises(MlxforgeError, match="the run's base is tiny"):
        train(config(documents, tmp_path, from_run=str(finished[0].path), model="elsewhere"))
