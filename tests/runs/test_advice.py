"""Next steps: golden results in, advice out; each condition bites, and every advised command parses."""

from __future__ import annotations

import math

import pytest
from command_lines import parses

from mlxforge.core.eventlog import EventLog
from mlxforge.core.events import Evaluated, RunStarted, StepDone
from mlxforge.core.settings import CptConfig, DpoConfig, KtoConfig, OrpoConfig, SftConfig
from mlxforge.runs import advice
from mlxforge.runs.advice import RULES, Trained, after_training, lines

RESULT = {
    "steps": 100, "best": {"step": 100, "loss": 1.5}, "before": {"loss": 3.0}, "valid": {"loss": 1.5},
    "retention": {"before": {"loss": 2.0}, "after": {"loss": 2.05}}, "task": {}, "skipped_updates": 0,
}  # fmt: skip
FALLING = [(step, 3.0 * 0.5 ** (step / 10)) for step in range(0, 101, 10)]
SETTLED = [(0, 3.0), (10, 2.0), *((step, 1.5 - step / 1e5) for step in range(20, 101, 10))]
RISEN = [(0, 3.0), (10, 2.0), (20, 1.5), (30, 1.6), (100, 1.9)]


def run(tmp_path, settings=None, valid=SETTLED, losses=lambda step: 1.4, plan=None, **result):
    settings = settings or SftConfig(epochs=4)
    found = Trained(
        tmp_path / "my run",
        settings,
        {SftConfig: "sft", CptConfig: "cpt"}.get(type(settings), "dpo"),
        "finished",
        RESULT | result,
    )
    found.plan = plan or {"conversations": 500}
    found.valid, found.losses = list(valid), {step: losses(step) for step in range(1, 101)}
    return found


def remedies(found):
    return lines(advice.remedies(found))


def fired(found):
    return [rule.name for rule in RULES if rule.when(found)]


def test_a_good_run_needs_no_remedy(tmp_path):
    assert remedies(run(tmp_path)) == []


# name of the rule, what makes it hold, what makes it just not hold, the flags of its command
PAIRS = {"before": {"loss": 0.7, "accuracy": 0.5, "logp_chosen": -40.0}}
CASES = [
    ("over-fitted",
     {"valid": RISEN, "best": {"step": 20}, "losses": lambda step: 2 - step / 100},
     {"valid": RISEN, "best": {"step": 20}, "losses": lambda step: 2 + step / 100},
     "--epochs 0.8"),
    ("in vain",
     {"valid": SETTLED, "best": {"step": 69}},
     {"valid": SETTLED, "best": {"step": 70}},
     "--epochs 2.8"),
    ("not improved", {"best": {"step": 0}}, {"best": None}, "--learning-rate 0.0001"),
    ("still falling", {"valid": FALLING}, {"valid": [(80, 1.520), (90, 1.510), (100, 1.508)]}, "--epochs 8"),
    ("forgot",
     {"retention": {"before": {"loss": 2.0}, "after": {"loss": 2.21}}},
     {"retention": {"before": {"loss": 2.0}, "after": {"loss": 2.19}}},
     "--replay sample:general/replay.jsonl --replay-ratio 0.25"),
    ("flat answers",
     {"task": {"exact_match": {"before": 0.10, "after": 0.11}}, "settings": SftConfig(task="t.jsonl")},
     {"task": {"exact_match": {"before": 0.10, "after": 0.13}}, "settings": SftConfig(task="t.jsonl")},
     "--data t.jsonl"),
    ("flat pairs",
     {**PAIRS, "valid_result": {"accuracy": 0.51, "logp_chosen": -40.0}},
     {**PAIRS, "valid_result": {"accuracy": 0.53, "logp_chosen": -40.0}},
     "--learning-rate 1.5e-05"),
    ("chosen fell",
     {**PAIRS, "valid_result": {"accuracy": 0.9, "logp_chosen": -42.1}},
     {**PAIRS, "valid_result": {"accuracy": 0.9, "logp_chosen": -41.9}},
     "--loss dpop"),
    ("few rows", {"plan": {"conversations": 49}}, {"plan": {"conversations": 50}}, "synth qa"),
]  # fmt: skip


def made(tmp_path, facts):
    facts = dict(facts)
    if "valid_result" in facts:
        found = run(tmp_path, DpoConfig(), plan={"pairs": 500}, before=facts["before"])
        found.result = found.result | {"valid": facts["valid_result"]}
        return found
    return run(tmp_path, **facts)


@pytest.mark.parametrize(("name", "holds", "fails", "flags"), CASES, ids=[case[0] for case in CASES])
def test_each_rule_bites_where_it_should_alone(name, holds, fails, flags, tmp_path):
    found = made(tmp_path, holds)
    assert fired(found) == [name]
    advised = remedies(found)
    assert flags in advised[0]
    for line in advised:
        assert "  # " in line
        assert parses(line)
    assert name not in fired(made(tmp_path, fails))


def test_every_rule_has_a_case():
    assert [case[0] for case in CASES] == [rule.name for rule in RULES]


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        (DpoConfig(loss="ipo", sft_weight=0.2), "--sft-weight 0.4"),
        (OrpoConfig(), "--beta 0.2"),
        (KtoConfig(beta=0.3), "--beta 0.6"),
    ],
)
def test_what_holds_the_chosen_answers_fits_the_objective(settings, flag, tmp_path):
    found = run(tmp_path, settings, plan={}, **PAIRS)
    found.objective = type(settings).__name__.removesuffix("Config").lower()
    found.result = found.result | {"valid": {"accuracy": 0.9, "logp_chosen": -50.0}}
    [line] = remedies(found)
    assert flag in line
    parses(line)


def test_retention_of_a_run_with_replay_and_of_one_that_cannot_have_it(tmp_path):
    worse = {"retention": {"before": {"loss": 2.0}, "after": {"loss": 3.0}}}
    [line] = remedies(run(tmp_path, SftConfig(replay=["x.txt"], replay_ratio=0.2), **worse))
    assert "--replay-ratio 0.4" in line
    assert "--replay sample" not in line
    [line] = remedies(run(tmp_path, DpoConfig(), plan={}, **worse))
    assert "--learning-rate 2.5e-06" in line


def test_a_run_by_steps_is_advised_steps_and_a_free_name(tmp_path):
    (tmp_path / "my run-2").mkdir()
    [line] = remedies(run(tmp_path, SftConfig(steps=100), valid=FALLING))
    words = parses(line)
    assert words[words.index("--steps") + 1] == "200"
    assert words[words.index("--name") + 1] == "my run-3"
    assert words[words.index("-c") + 1] == str(tmp_path / "my run" / "config.yaml")


def logged(tmp_path, valid=FALLING):
    """A run directory with a log."""
    path = tmp_path / "my run"
    path.mkdir()
    (path / "events.jsonl").touch()
    (path / "adapter_config.json").write_text('{"model": "some/model"}')
    with EventLog(path / "events.jsonl") as log:
        log(RunStarted(run="r", objective="sft", path=str(path), config={}, plan={"conversations": 12}))
        log(Evaluated(step=90, name="valid", loss=9.0, perplexity=None, bpb=None, tokens=1, seconds=0.1))
        log(RunStarted(run="r", objective="sft", path=str(path), config={}, plan={"conversations": 12}, step=10))
        for step, loss in valid:
            log(Evaluated(step=step, name="valid", loss=loss, perplexity=None, bpb=None, tokens=1, seconds=0.1))
        step = {"epoch": 1.0, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 1, "trained": 1, "slots": 1, "seconds": 0.1}
        log(StepDone(step=1, steps=100, loss=math.nan, **step))
    return path


def test_the_log_is_read_and_a_resumed_run_counts_its_last_sitting(tmp_path):
    settings = SftConfig(task="t.jsonl")
    result = RESULT | {"task": {"exact_match": {"before": 0.1, "after": 0.1}}}
    advised = after_training(logged(tmp_path), settings, "sft", "finished", result)
    assert [line for line in advised if "still falling" in line]
    assert [line for line in advised if "only 12 conversations" in line]
    [asked] = [line for line in advised if " eval " in line]  # a use and a remedy: one line, with the reason
    assert "see the answers" in asked


def test_what_a_resumed_run_went_over_again_counts_once(tmp_path):
    found = run(tmp_path, valid=[])
    for step, loss in ((10, 3.0), (20, 2.5), (10, 3.1)):
        found.hear(Evaluated(step=step, name="valid", loss=loss, perplexity=None, bpb=None, tokens=1, seconds=0.1))
    assert found.valid == [(10, 3.1)]


@pytest.mark.parametrize("objective", ["cpt", "sft", "dpo"])
@pytest.mark.parametrize("runs", ["runs", "other runs"])
def test_what_a_finished_run_is_good_for(objective, runs, tmp_path):
    settings = {"cpt": CptConfig, "sft": SftConfig, "dpo": DpoConfig}[objective](runs_dir=runs)
    if objective != "cpt":
        settings.task = "my questions.jsonl"
    advised = after_training(logged(tmp_path, SETTLED), settings, objective, "finished", RESULT)
    text = "\n".join(advised)
    for verb in {
        "cpt": ["sft", "generate"],
        "sft": ["chat", "eval", "dpo", "export gguf"],
        "dpo": ["chat", "eval", "export gguf"],
    }[objective]:
        assert f"mlxforge {verb}" in text
    for line in advised:
        if "mlx_lm.generate" not in line:
            assert runs == "runs" or "--runs-dir" in line or "-c" in line or "synth" in line
            parses(line)


def test_a_run_that_did_not_finish(tmp_path):
    for status in ("interrupted", "stopped", "failed"):
        [line] = after_training(tmp_path / "a", SftConfig(runs_dir="x y"), "sft", status, RESULT)
        assert parses(line)[1:] == ["sft", "--runs-dir", "x y", "--resume", "a"]
    lower, find = after_training(tmp_path / "a", SftConfig(), "sft", "failed", RESULT | {"skipped_updates": 5})
    assert "--learning-rate 0.0001" in lower
    assert "diverged" in lower
    assert parses(find)[1:3] == ["lr-find", "sft"]
    parses(lower)
