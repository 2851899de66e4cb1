"""Searching over settings: what may be searched, what is tried, what is stopped, and how a killed sweep goes on."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlxforge.cli.main import run as command
from mlxforge.core.config import to_dict
from mlxforge.core.errors import ConfigError, Interrupted, RunError
from mlxforge.core.events import Evaluated, Noted, Progress, RunEnded, RunStarted
from mlxforge.core.settings import CptConfig, DpoConfig, LoraSettings, SftConfig
from mlxforge.runs.record import objective_for, read_config, read_record
from mlxforge.runs.space import Metric, dimensions, metric, points
from mlxforge.runs.suggest import STARTUP, Trial, hopeless, suggest
from mlxforge.runs.sweep import STOPPED, Asked, Curve, Tried, _trial, new_sweep, old_sweep, result_of, sweep

RATE = "learning_rate=1e-5..1e-1:log"


# --- what may be searched -------------------------------------------------------------------------------------------------


def test_ranges_and_values_have_the_types_of_their_settings():
    rate, rank, kind, targets, alpha = dimensions(
        SftConfig,
        [RATE, "lora.rank=4..64:log", "lora.kind=lora,dora", "lora.targets=[q_proj, v_proj],[all]", "lora.alpha=8,1e1"],
    )
    assert (rate.low, rate.high, rate.log, rate.whole) == (1e-5, 0.1, True, False)
    assert (rank.low, rank.high, rank.whole) == (4, 64, True)
    assert kind.values == ("lora", "dora")
    assert targets.values == (["q_proj", "v_proj"], ["all"])
    assert alpha.values == (8.0, 10.0)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("learning_rate", "no range"),
        ("learning_rate=", "no range"),
        ("learning_rat=1..2", "did you mean 'learning_rate'"),
        ("learning_rate=1e-3..1e-4", "ends before it begins"),
        ("learning_rate=0..1:log", "begins above 0"),
        ("learning_rate=-1..1", "learning_rate: -1.0"),
        ("learning_rate=1e-5..1e-4:lin", "'lin' is no property"),
        ("learning_rate=1e-5..x", "LOW..HIGH"),
        ("learning_rate=1e999..1e9999", "finite"),
        ("learning_rate=1e-5...1e-3", "LOW..HIGH"),
        ("lora.rank=0..8", "lora.rank: 0"),
        ("lora.rank=1.5..8", "whole number"),
        ("lora.rank=a,b", "'a' is not integer"),
        ("optimizer=1..2", "no range"),
        ("optimizer=adamm", "'adamm' is not one of"),
        ("name=a,b", "cannot be searched"),
        ("learning_rate=[1", "neither values nor a range"),
    ],
)
def test_a_bad_range_is_one_line_with_its_place(over, said):
    with pytest.raises(ConfigError) as caught:
        dimensions(SftConfig, [over])
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"--over '{over}'")
    assert "\n" not in str(caught.value)


def test_a_grid_by_logarithms_is_geometric():
    space = dimensions(SftConfig, ["learning_rate=1e-4..1e-2:log:3", "lora.rank=4..8:3"])
    assert [tuple(point.values()) for point in points(space)] == [
        (rate, rank) for rate in (1e-4, 1e-3, 1e-2) for rank in (4, 6, 8)
    ]
    with pytest.raises(ConfigError, match="number of points"):
        list(points(dimensions(SftConfig, [RATE])))


def test_the_ends_of_a_range():
    rate, rank, kind = dimensions(SftConfig, ["learning_rate=1e-4..1e-2:log", "lora.rank=1..100", "lora.kind=lora,dora"])
    assert [rate.at_end(value) for value in (1e-4, 1.2e-4, 1.3e-4, 7.9e-3, 8e-3)] == [True, True, False, False, True]
    assert [rank.at_end(value) for value in (5, 6, 96)] == [True, False, True]
    assert not kind.at_end("lora")


@pytest.mark.parametrize(
    ("name", "config", "over", "said"),
    [
        ("valid.los", SftConfig(), RATE, "did you mean 'valid.loss'"),
        ("loss", SftConfig(), RATE, "no figure"),
        ("valid.loss", SftConfig(valid_split=0), RATE, "valid_split above 0"),
        ("retention.bpb", SftConfig(), RATE, "give retention"),
        ("task.exact_match", SftConfig(), RATE, "give task"),
        ("task.exact_match", SftConfig(task="q.jsonl", match="start"), RATE, "take task.prefix_match"),
        ("task.preference_accuracy", SftConfig(), RATE, "have no task.preference_accuracy"),
        ("valid.accuracy", CptConfig(), RATE, "have no valid.accuracy"),
        ("valid.bpb", DpoConfig(), RATE, "have no valid.bpb"),
        ("valid.loss", DpoConfig(), "beta=0.1,0.5", "changes what valid.loss means"),
        ("valid.loss", SftConfig(), "max_length=64,128", "changes what valid.loss means"),
    ],
)
def test_a_figure_that_the_runs_lack_or_that_cannot_be_compared_is_refused(name, config, over, said):
    with pytest.raises(ConfigError) as caught:
        metric(name, config, dimensions(type(config), [over]))
    assert said in str(caught.value)


def test_a_metric_reads_the_result_of_a_run():
    result = {
        "valid": {"loss": 1.5},
        "retention": {"before": {"bpb": 2.0}, "after": {"bpb": 2.5}},
        "task": {"exact_match": {"before": 0.0, "after": 0.75}},
    }
    figures = [Metric(*name.split(".")).of(result) for name in ("valid.loss", "retention.bpb", "task.exact_match", "valid.bpb")]
    assert figures == [1.5, 2.5, 0.75, None]
    assert [Metric("task", "exact_match").higher, Metric("valid", "loss").higher] == [True, False]


def test_the_objective_is_told_by_name_file_or_run(tmp_path):
    (tmp_path / "run.json").write_text('{"objective": "kto"}')
    assert objective_for("dpo", tmp_path / "sft.yaml") == "dpo"
    assert objective_for(None, tmp_path / "config.yaml") == "kto"
    assert [objective_for(None, Path(name)) for name in ("sft.yaml", "handbook-dpo", "sft-after-cpt")] == [
        "sft",
        "dpo",
        "sft",
    ]
    with pytest.raises(ConfigError, match="name does not say its objective"):
        objective_for(None, tmp_path / ".." / "mine.yaml")


# --- what is tried and what is stopped ------------------------------------------------------------------------------------


def far(params):
    """A valley at a rate of 1e-3."""
    return abs(math.log10(params["learning_rate"]) + 3)


def search(seed, many=16):
    space, past = dimensions(SftConfig, [RATE]), []
    for _ in range(many):
        params = suggest(space, past, seed, higher=False)
        past.append(Trial(params, [far(params)], far(params)))
    return past


def test_the_same_seed_and_past_give_the_same_suggestion_and_later_ones_come_closer():
    one, again, other = search(0), search(0), search(1)
    assert one == again != other
    assert len({trial.params["learning_rate"] for trial in one[:STARTUP]}) == STARTUP
    first, last = ([trial.value for trial in part] for part in (one[:STARTUP], one[-STARTUP:]))
    assert sum(last) < sum(first)
    assert min(trial.value for trial in one) < 0.2


def test_a_diverged_trial_counts_as_the_worst():
    """Told nothing of rates that are too high, the search would go back there."""
    space, past = dimensions(SftConfig, [RATE]), []
    for _ in range(24):
        params = suggest(space, past, 0, higher=False)
        high = params["learning_rate"] > 1e-2
        past.append(Trial(params, [] if high else [far(params)], None if high else far(params)))
    assert sum(trial.value is None for trial in past[:8]) >= sum(trial.value is None for trial in past[-8:])
    assert sum(trial.value is None for trial in past[-8:]) <= 1


def test_a_curve_forgets_what_a_resumed_run_goes_over_again():
    def evaluated(step, loss, **metrics):
        return Evaluated(step=step, name="valid", loss=loss, perplexity=None, bpb=None, tokens=1, seconds=0.1, metrics=metrics)

    loss, accuracy, task = (Curve(Metric(*name.split("."))) for name in ("valid.loss", "valid.accuracy", "task.exact_match"))
    started = RunStarted(run="r", objective="sft", path="r", config={}, plan={}, step=10)
    for curve in (loss, accuracy, task):
        told = [curve(event) for event in (evaluated(0, 9.0), evaluated(10, 3.0, accuracy=0.5), evaluated(20, 2.0), started)]
        assert told == [False, True, True, False]
        curve(evaluated(20, 2.5, accuracy=0.75))
    assert (loss.values, accuracy.values, task.values) == ([3.0, 2.5], [0.5, 0.75], [-3.0, -2.5])


def test_a_diverged_trial_is_told_without_its_curve():
    tried = Tried("s-t01", {"learning_rate": 1.0}, "failed", curve=[2.0, 1.0], diverged=True)
    assert (tried.ended, _trial(tried)) == (True, Trial({"learning_rate": 1.0}, [], None))
    assert _trial(Tried("s-t02", {}, STOPPED, curve=[2.0])).curve == [2.0]
    assert not Tried("s-t03", {}, "failed").ended


def test_the_median_rule_by_hand():
    past = [Trial({}, [5.0, value, value], value) for value in (1.0, 2.0, 3.0, 4.0)]  # median of the second: 2.5
    assert hopeless([9.0, 2.6], past, higher=False)
    assert not hopeless([9.0, 2.4], past, higher=False)
    assert not hopeless([2.4, 9.0], past, higher=False)  # the best so far counts
    assert not hopeless([9.0], past, higher=False)  # the first evaluation is too early
    assert not hopeless([9.0, 9.0], past[:3], higher=False)  # too few have finished
    assert hopeless([0.1, 2.4], past, higher=True)


# --- the sweep itself -----------------------------------------------------------------------------------------------------


def asked(documents, runs, **more):
    config = CptConfig(
        data=[str(documents / "05.txt")], valid=str(documents / "04.txt"), runs_dir=str(runs), steps=3, eval_every=1,
        max_length=32, batch_tokens=64, warmup=0.0, schedule="constant", sample_tokens=0, max_skipped=2,
        lora=LoraSettings(rank=2, alpha=4.0),
    )  # fmt: skip
    return Asked(**{"name": "s", "objective": "cpt", "config": to_dict(config), "over": [RATE], "trials": 5, **more})


@pytest.fixture(scope="module")
def done(documents, tmp_path_factory):
    runs = tmp_path_factory.mktemp("swept")
    events, heard = [], []
    ended = sweep(new_sweep(asked(documents, runs)), events.append, [heard.append])
    assert [event.run for event in heard if isinstance(event, RunEnded)] == [one.run for one in ended.trials]
    return runs, ended, events


def test_trials_are_runs_and_the_best_is_written(done):
    runs, ended, events = done
    assert [one.run for one in ended.trials] == [f"s-t{number:02d}" for number in range(1, 6)]
    for one in ended.trials:
        assert read_config(runs / one.run)["learning_rate"] == one.settings["learning_rate"]
        assert (runs / one.run / "adapters.safetensors").exists()
    finished = [one for one in ended.trials if one.status == "finished"]
    assert len(finished) >= STARTUP
    assert ended.best.value == min(one.value for one in finished)
    assert ended.best.value == read_record(runs / ended.best.run)["result"]["valid"]["loss"]
    assert ended.result["status"] == "finished"
    assert sum(isinstance(event, Noted) for event in events) == 5
    shares = [event.done for event in events if isinstance(event, Progress) and event.task == "5 trials"]
    assert shares == sorted(shares)
    assert shares[-1] == 100


def test_the_best_settings_are_a_config(done, capsys):
    runs, ended, _ = done
    assert command(["cpt", "-c", str(runs / "s" / "best.yaml"), "--dry-run", "--json"], debug=False) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["config"]["learning_rate"] == ended.best.settings["learning_rate"]
    assert plan["config"]["steps"] == 3
    assert plan["config"]["name"] is None


def test_a_killed_sweep_goes_on_as_if_it_had_not_been(done, documents, tmp_path):
    """Ctrl-C arrives in the third trial."""
    _, whole, _ = done

    def stop(event):
        if isinstance(event, Progress) and event.task == "5 trials" and event.done > 45:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        sweep(new_sweep(asked(documents, tmp_path)), stop)
    assert "sweep --runs-dir" in caught.value.fix
    assert caught.value.result["status"] == "interrupted"
    assert len(caught.value.result["trials"]) == 3
    ended = sweep(old_sweep("last", str(tmp_path)))
    assert [(one.run, one.settings, one.value, one.curve) for one in ended.trials] == [
        (one.run, one.settings, one.value, one.curve) for one in whole.trials
    ]


def test_a_hopeless_trial_is_stopped_with_the_reason_and_a_diverged_one_does_not_end_the_sweep(documents, tmp_path):
    rates = "learning_rate=1e-2,8e-3,6e-3,4e-3,1e-9,1e30"
    ended = sweep(new_sweep(asked(documents, tmp_path, over=[rates], grid=True, trials=None)))
    assert [one.status for one in ended.trials] == ["finished"] * 4 + ["stopped", "failed"]
    stopped, failed = ended.trials[4:]
    assert stopped.steps == 2  # the second evaluation
    record = read_record(tmp_path / "s-t05")
    assert record["status"] == "stopped"
    assert "worse than the median" in record["reason"]
    assert failed.diverged
    assert failed.value is None
    free = sweep(new_sweep(asked(documents, tmp_path, name="free", over=["learning_rate=1e-9"], grid=True, prune=False)))
    assert free.trials[0].status == "finished"


@pytest.mark.slow
def test_a_fast_blas_is_loaded_before_a_forecast_imports_mlx(documents, tmp_path):
    words = ["sweep", "cpt", "--set", f"data=[{documents}]", "--set", "steps=2", "--set", "max_length=32", "--over", RATE]
    code = f"from mlxforge.cli.main import run; run({[*words, '--dry-run']!r}, debug=False)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "judged by" in done.stdout
    assert "mlx was imported before" not in done.stderr


@pytest.mark.parametrize(
    ("over", "more", "wanted"),
    [
        (["lora.rank=2,4", "epochs=1,2"], {"trials": None}, 4),
        (["lora.rank=2,4", "epochs=1,2"], {"trials": 4}, 4),
        (["lora.rank=2,4", "epochs=1,2"], {"trials": 3}, 3),
        (["lora.rank=2,4", RATE], {"trials": None}, 8),
        (["lora.rank=2,2"], {}, 1),
    ],
)
def test_what_is_listed_is_tried_once(over, more, wanted, documents, tmp_path):
    made = new_sweep(asked(documents, tmp_path, over=over, **more))
    assert made.trials == wanted
    tried = [made.settings(number, []) for number in range(1, wanted + 1)] if made.grid else []
    assert len({json.dumps(one) for one in tried}) == len(tried)


def test_names_with_spaces_can_be_copied_to_a_shell(done, tmp_path):
    runs, ended, _ = done
    for folder in (runs / "s", *(runs / one.run for one in ended.trials)):
        shutil.copytree(folder, tmp_path / folder.name.replace("s", "a b", 1), symlinks=True)
    for line in result_of(old_sweep("a b", str(tmp_path))).next_steps:
        assert [one for one in shlex.split(line) if "a b" in one]


def test_names_that_are_taken_are_refused(done, documents):
    runs, _, _ = done
    with pytest.raises(RunError, match="exists"):
        new_sweep(asked(documents, runs))
    with pytest.raises(RunError, match="did you mean 's'"):
        old_sweep("ss", str(runs))


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", "-c", "handbook-sft", "--over", RATE], "--yes"),
        (["sweep", "-c", "nowhere-sft.yaml", "--over", RATE], "nowhere-sft.yaml"),
        (["sweep", "sft", "--over", RATE, "--set", "epoch=1"], "did you mean 'epochs'"),
        (["sweep", "ftt", "--over", RATE], "unknown objective 'ftt'"),
        (["sweep", "sft"], "nothing to search over"),
        (["sweep"], "no objective"),
        (["sweep", "sft", "--over", RATE, "--yes"], "no data"),
        (["sweep", "--resume", "x", "--over", RATE], "keeps its settings"),
        (["sweep", "--resume"], "no sweep here"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(words, debug=False) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_dry_run_forecasts_and_writes_nothing(documents, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "cpt", "--set", f"data=[{documents}]", "--set", "steps=3", "--set", "max_length=32", "--over", RATE]
    assert command([*words, "--set", "batch_tokens=64", "--set", "lora.rank=2", "--dry-run", "--json"], debug=False) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["trials"], plan["steps"], plan["metric"]) == (8, 3, "valid.loss")
    assert plan["seconds"] > 0
    assert not list(tmp_path.iterdir())
