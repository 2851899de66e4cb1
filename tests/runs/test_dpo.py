"""Learning from preferences from end to end: the reference, what is measured, what is kept, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxforge import Control, CpoConfig, DpoConfig, KtoConfig, OrpoConfig, SftConfig, SimpoConfig, plan, resume, train
from mlxforge.core.config import from_dict
from mlxforge.core.errors import ConfigError, DataError, MlxforgeError
from mlxforge.core.events import Evaluated, Noted, Progress, RunStarted, Sampled, StepDone, Warned
from mlxforge.core.files import cache_dir
from mlxforge.models.check import model_hash
from mlxforge.models.render import locked_thinking
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.reference import numbers_of
from mlxforge.runs.watch import Watch

SMALL = {"max_length": 96, "batch_tokens": 512, "learning_rate": 3e-3, "sample_tokens": 4, "warmup": 0,
         "lora": {"rank": 4, "alpha": 8.0}}  # fmt: skip
TEMPLATES = Path(__file__).parent.parent / "data" / "chat_templates"
KINDS = {"dpo": DpoConfig, "orpo": OrpoConfig, "simpo": SimpoConfig, "cpo": CpoConfig, "kto": KtoConfig}


def pair(index):
    return {
        "prompt": f"What is sold at stall {index}? Tell me of the {'red ' * (index % 4)}goods there.",
        "chosen": f"Good flour, sir, of mill {index}.",
        "rejected": "I do not know." if index % 2 else f"Nobody sells there, stall {index} is closed.",
    }


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return {
        "train": write(folder / "train.jsonl", [pair(i) for i in range(12)]),
        "valid": write(folder / "valid.jsonl", [pair(i) for i in range(20, 25)]),
        "kto": write(folder / "kto.jsonl", [
            {"prompt": pair(i)["prompt"], "completion": pair(i)["rejected" if i % 3 else "chosen"], "label": i % 3 == 0}
            for i in range(12)
        ]),
    }  # fmt: skip


def config(files, runs, kind=DpoConfig, **settings):
    rows = files["kto" if kind is KtoConfig else "train"]
    valid = {} if kind is KtoConfig else {"valid": files["valid"]}
    return from_dict(kind, SMALL | {"data": [rows], "runs_dir": str(runs), "name": "a", "steps": 3} | valid | settings)


def weights(ended, where="last/adapters.safetensors"):
    return dict(mx.load(str(ended.path / where)))


def same(first, second):
    return first.keys() == second.keys() and all(mx.array_equal(first[key], second[key]).item() for key in first)


def steps(events):
    return [event for event in events if isinstance(event, StepDone)]


@pytest.mark.parametrize("objective", KINDS)
def test_every_objective_trains_and_is_measured(objective, data, tmp_path):
    events = []
    ended = train(config(data, tmp_path, KINDS[objective], epochs=4, steps=None, valid_split=0.3), [events.append])
    first, last = steps(events)[0], steps(events)[-1]
    assert last.loss < first.loss
    assert {"reward_chosen", "reward_rejected", "margin", "accuracy", "logp_chosen", "logp_rejected"} <= set(last.metrics)
    assert ended.result["objective"] == objective
    assert ended.result["valid"]["perplexity"] is None
    assert ended.result["valid"]["margin"] > ended.result["before"]["margin"]
    task = ended.result["task"]["preference_accuracy"]
    assert task["after"] == pytest.approx(ended.result["valid"]["accuracy"])
    assert (ended.path / "chat_template.jinja").exists()


def test_dpo_begins_at_ln_2_with_half_of_the_pairs_right(data, tmp_path):
    events = []
    ended = train(config(data, tmp_path), [events.append])
    assert steps(events)[0].loss == pytest.approx(math.log(2), rel=1e-5)
    assert ended.result["before"]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert ended.result["task"]["preference_accuracy"]["before"] == pytest.approx(0.5, abs=0.5)
    assert ended.result["before"]["margin"] == pytest.approx(0, abs=1e-4)


def test_the_switch_of_thoughts_is_saved_as_the_pairs_have_them(tmp_path):
    """Set where all answers have thoughts or none has; pairs of both kinds leave it to whoever asks."""
    model = make_tiny("qwen3", tmp_path / "base")
    shutil.copy(TEMPLATES / "qwen3.jinja", model / "chat_template.jinja")
    thought = [row | {"chosen": f"<think>Hm.</think>{row['chosen']}", "rejected": f"<think>So?</think>{row['rejected']}"}
               for row in map(pair, range(8))]  # fmt: skip
    kinds = {"with": thought, "without": [pair(i) for i in range(8)], "both": [*thought[:4], *map(pair, range(4, 8))]}
    found = {}
    for name, rows in kinds.items():
        files = {"train": write(tmp_path / f"{name}.jsonl", rows), "valid": None}
        values = {"model": str(model), "name": name, "steps": 1, "sample_tokens": 0, "valid_split": 0, "max_length": 256}
        ended = train(config(files, tmp_path / "runs", **values))
        found[name] = locked_thinking((ended.path / "chat_template.jinja").read_text())
    assert found == {"with": True, "without": False, "both": None}


def test_the_reference_is_taken_once_and_kept(data, tmp_path):
    def told(name):
        events = []
        ended = train(config(data, tmp_path, name=name, seed=7), [events.append])
        taken = [event for event in events if isinstance(event, Progress) and event.task == "reference"]
        return len(taken), weights(ended)

    for file in (cache_dir() / "reference").glob("*.npy"):
        file.unlink()
    first, again = told("first"), told("again")
    assert first[0] > 0 == again[0]
    assert same(first[1], again[1])
    kept = sorted((cache_dir() / "reference").glob("*.npy"))
    assert len(kept) == 2, "train and valid"
    for file in kept:
        np.save(file, np.load(file) - np.array([3, 0], np.float32))
    events = []
    train(config(data, tmp_path, name="broken", seed=7), [events.append])
    assert abs(steps(events)[0].loss - math.log(2)) > 0.05, "a wrong reference shows in the first loss"
    for file in kept:
        file.unlink()


def test_references_of_two_merged_models_are_not_confused(tmp_path, monkeypatch):
    """Over 64 MB a hash only samples: weights that differ between the samples are still another reference."""
    for name, given in {"HASH_WHOLE": 0, "HASH_BLOCK": 64, "HASH_BLOCKS": 2}.items():
        monkeypatch.setattr(f"mlxforge.models.check.{name}", given)
    one = make_tiny("llama3", tmp_path / "one")
    two = shutil.copytree(one, tmp_path / "two")
    assert numbers_of(one, [], "float32") == numbers_of(two, [], "float32")
    with open(two / "model.safetensors", "r+b") as weights:
        weights.seek(weights.seek(0, 2) // 2)
        weights.write(bytes(64))
    assert model_hash(one) == model_hash(two)
    assert numbers_of(one, [], "float32") != numbers_of(two, [], "float32")


def test_another_reference(data, tmp_path):
    """A model of the same vocabulary as the reference: the first loss is no longer ln 2. Another vocabulary is refused."""
    base, other = (make_tiny("llama3", tmp_path / name, seed=seed) for name, seed in (("base", 0), ("other", 1)))
    events = []
    train(config(data, tmp_path, model=str(base), reference=str(other)), [events.append])
    assert abs(steps(events)[0].loss - math.log(2)) > 1e-3
    itself = []
    train(config(data, tmp_path, name="b", model=str(base), reference=str(base)), [itself.append])
    assert steps(itself)[0].loss == pytest.approx(math.log(2), rel=1e-4)
    for verb in (train, plan):
        with pytest.raises(ConfigError, match="another vocabulary"):
            verb(config(data, tmp_path, name="c", model=str(base), reference="tiny"))


def test_scores_without_two_of_a_prompt_are_told(data, tmp_path):
    rows = [{"prompt": f"q {i}", "response": "r", "reward": 1.0} for i in range(3)]
    with pytest.raises(DataError, match=r"no pair is left to train on \((?!they hold no rows)"):
        plan(config(data, tmp_path, data=[write(tmp_path / "scores.jsonl", rows)]))


@pytest.mark.parametrize("settings", [{"lora": {"kind": "full"}}, {"lora": {"kind": "dora", "rank": 4, "alpha": 8.0}}])
def test_the_reference_serves_every_kind_of_training(settings, data, tmp_path):
    events = []
    train(config(data, tmp_path, learning_rate=1e-4, **settings), [events.append])
    assert steps(events)[0].loss == pytest.approx(math.log(2), rel=1e-4)


def test_a_run_is_its_own_reference_when_gone_on_with(data, tmp_path):
    train(config(data, tmp_path, name="first"))
    events = []
    train(config(data, tmp_path, name="second", from_run="first"), [events.append])
    assert steps(events)[0].loss == pytest.approx(math.log(2), rel=1e-4)


@pytest.mark.parametrize("below", [False, True], ids=["start", "below"])
def test_an_adapter_of_another_scale_has_a_reference_of_its_own(below, data, tmp_path):
    train(config(data, tmp_path))
    for scale in (2.0, 40.0):
        folder = tmp_path / f"x{scale:.0f}"
        shutil.copytree(tmp_path / "a", folder)
        kept = json.loads((folder / "adapter_config.json").read_text())
        kept["lora_parameters"]["scale"] = scale
        (folder / "adapter_config.json").write_text(json.dumps(kept))
        names = {"model": f"run:{folder.name}", "adapter": str(tmp_path / "a")} if below else {"adapter": str(folder)}
        ended = train(config(data, tmp_path, name=f"on-{folder.name}", steps=1, **names))
        assert ended.result["before"]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_layouts_train_the_same_model(data, tmp_path):
    ended = {
        name: train(config(data, tmp_path, name=name, learning_rate=1e-3, **settings))
        for name, settings in {
            "on": {"share_prompt": "on"},
            "off": {"share_prompt": "off"},
            "packed": {"batching": "packed"},
        }.items()
    }
    for name in ("off", "packed"):
        assert ended[name].result["before"]["logp_chosen"] == pytest.approx(
            ended["on"].result["before"]["logp_chosen"], rel=1e-4
        )
    assert plan(config(data, tmp_path, share_prompt="on"))["padding"] >= 0


def test_an_interrupted_run_ends_with_the_same_bits(data, tmp_path):
    whole = train(config(data, tmp_path, name="whole", steps=4))
    control = Control()

    def stop(event):
        control.finish = control.finish or (isinstance(event, StepDone) and event.step == 2)

    train(config(data, tmp_path, name="part", steps=4), [stop], control)
    for file in (cache_dir() / "reference").glob("*.npy"):
        file.unlink()
    resumed = resume("part", runs_dir=str(tmp_path))
    assert same(weights(whole), weights(resumed))
    assert resumed.result["task"] == whole.result["task"]


def test_a_dry_run_takes_no_reference(data, tmp_path):
    events = []
    found = plan(config(data, tmp_path), [events.append])
    assert not [event for event in events if isinstance(event, Progress) and event.task == "reference"]
    assert found["memory"]["caches"] == (12 + 5) * 2 * 4
    assert (found["pairs"], found["valid_pairs"]) == (12, 5)
    assert 0 < found["prompt_share"] < 1


def test_long_prompts_are_shortened_and_answers_never(data, tmp_path):
    rows = [pair(i) | {"prompt": "The story so far is long. " * 40 + pair(i)["prompt"]} for i in range(6)]
    heard = []
    found = plan(config(data, tmp_path, data=[write(tmp_path / "long.jsonl", rows)], valid_split=0), [heard.append])
    assert found["pairs"] == 6
    assert any("prompt" in event.message and "6" in event.message for event in heard if isinstance(event, Noted))
    rows[0]["chosen"] = "word " * 400
    with pytest.raises(DataError, match=r"long.jsonl:1: "):
        plan(config(data, tmp_path, data=[write(tmp_path / "long.jsonl", rows)]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "chosen": "same", "rejected": "same"}, "bad.jsonl:1"),
        ({"prompt": "x", "chosen": "only"}, "bad.jsonl:1"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "sft"),
    ],
)
def test_bad_rows_are_told_by_line(row, said, data, tmp_path):
    with pytest.raises(DataError, match=said):
        train(config(data, tmp_path, data=[write(tmp_path / "bad.jsonl", [row])]))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"beta": 0}, "beta"),
        ({"dpop_weight": 3.0}, "has no effect with loss sigmoid"),
        ({"share_prompt": "on", "batching": "packed"}, "do not go together"),
        ({"share_prompt": "on", "grad_checkpoint": True}, "do not go together"),
    ],
)
def test_settings_that_cannot_be(settings, said, data, tmp_path):
    with pytest.raises(ConfigError, match=said):
        train(config(data, tmp_path, **settings))


def evaluated(step, loss, **metrics):
    return Evaluated(step=step, name="valid", loss=loss, perplexity=None, bpb=None, tokens=5, seconds=0.1, metrics=metrics)


def test_what_a_run_warns_of():
    heard = []
    watch = Watch(heard.append)
    for event in (
        evaluated(0, 0.69, logp_chosen=-50.0, length_bias=0.0),
        evaluated(1, 0.60, logp_chosen=-51.0, length_bias=0.1),
        evaluated(2, 0.50, logp_chosen=-60.0, length_bias=0.1),
        evaluated(3, 0.40, logp_chosen=-70.0, length_bias=0.3),
    ):
        watch(event)
    warned = [event.message for event in heard if isinstance(event, Warned)]
    assert len(warned) == 2
    assert "less likely (log p -50.0 to -60.0)" in warned[0]
    assert "30% more" in warned[1]
    assert [event.step for event in heard if isinstance(event, Evaluated)] == [0, 1, 2, 3]


@pytest.mark.slow
def test_the_sample_road(tmp_path):
    """make cpt, make sft, make dpo: what the issue promises."""
    from mlxforge import CptConfig
    from mlxforge.core.config import resolve, yaml_layer
    from mlxforge.core.files import embedded

    def run(kind, preset, name, **more):
        settings = resolve(kind, yaml_layer(embedded("configs", f"{preset}.yaml")))
        for key, value in (more | {"name": name, "runs_dir": str(tmp_path)}).items():
            setattr(settings, key, value)
        return train(settings).result

    run(CptConfig, "handbook-cpt", "text")
    answers = run(SftConfig, "handbook-sft", "answers", model="run:text")
    assert answers["task"]["exact_match"]["before"] < 0.05
    assert answers["task"]["exact_match"]["after"] > 0.75
    preferred = run(DpoConfig, "handbook-dpo", "preferred", model="run:answers")
    assert preferred["task"]["preference_accuracy"]["before"] == pytest.approx(0.5, abs=0.2)
    assert preferred["task"]["preference_accuracy"]["after"] > 0.9
    assert preferred["task"]["exact_match"]["after"] > preferred["task"]["exact_match"]["before"] - 0.05


# objective -> its own settings, the value tried, and what else must be set for it to matter
OWN = {
    "dpo": {
        "loss": ("ipo", {}),
        "beta": (0.5, {}),
        "label_smoothing": (0.2, {}),
        "dpop_weight": (1.0, {"loss": "dpop", "reference": "other", "model": "base"}),
        "sft_weight": (0.5, {}),
        "reference": ("other", {"model": "base"}),
        "share_prompt": ("off", {"share_prompt": "on"}),
    },
    "orpo": {"beta": (0.5, {}), "share_prompt": ("off", {"share_prompt": "on"})},
    "simpo": {"beta": (1.0, {}), "gamma": (0.1, {}), "sft_weight": (0.5, {}), "share_prompt": ("off", {"share_prompt": "on"})},
    "cpo": {"beta": (0.5, {}), "sft_weight": (0.1, {}), "share_prompt": ("off", {"share_prompt": "on"})},
    "kto": {
        "beta": (0.5, {}),
        "desirable_weight": (2.0, {}),
        "undesirable_weight": (2.0, {}),
        "reference": ("other", {"model": "base"}),
    },
}
# What the reader of pairs does with the settings that it shares with that of conversations.
READ = {
    "data": ("fewer", {}),
    "map": ({"chosen": "good", "rejected": "worse"}, {"data": "mapped", "map": {"chosen": "good", "rejected": "bad"}}),
    "valid": ("fewer", {}),
    "valid_split": (0.5, {"valid": None}),
    "retention": ("sample:general/retention.txt", {}),
    "max_length": (48, {"data": "long"}),
    "samples": (["Who is it?"], {}),
    "sample_tokens": (2, {}),
    "format": ("dolly", {}),
    "skip_bad": (True, {"data": "bad"}),
    "overlong": ("drop", {"data": "long", "max_length": 48}),
    "task": ("sample:handbook/questions.unasked.jsonl", {}),
}


def test_no_setting_of_preferences_is_left_out():
    from mlxforge.core.config import walk
    from mlxforge.core.settings import ChatSettings

    shared = {key for key, _, _ in walk(ChatSettings)}
    for objective, kind in KINDS.items():
        assert {key for key, _, _ in walk(kind)} - shared == set(OWN[objective]), objective


@pytest.fixture(scope="module")
def places(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    rows = [pair(i) for i in range(8)]
    mapped = [{"prompt": row["prompt"], "good": row["chosen"], "bad": row["rejected"], "worse": "Go away."} for row in rows]
    long = [row | {"prompt": "It is a long story. " * (3 * i) + row["prompt"]} for i, row in enumerate(rows)]
    files = {"fewer": rows[:5], "mapped": mapped, "long": long, "bad": [*rows, {"prompt": 1}]}
    names = {name: write(folder / f"{name}.jsonl", found) for name, found in files.items()}
    models = {name: str(make_tiny("llama3", folder / name, seed=seed)) for seed, name in enumerate(("base", "other"))}
    return names | models


def outcome(settings, folder, data, places, kind):
    values = {key: places.get(value, value) if isinstance(value, str) else value for key, value in settings.items()}
    given = {"steps": 2, "valid_split": 0.3, "sample_tokens": 3} | values
    events = []
    try:
        result = train(config(data, folder, kind, **given), [events.append]).result
    except MlxforgeError as error:
        return str(error)
    started = next(event.plan for event in events if isinstance(event, RunStarted))
    losses = [(event.loss, event.slots) for event in steps(events)]
    said = [(event.prompt, event.text) for event in events if isinstance(event, Sampled)]
    scores = [(event.name, event.loss) for event in events if isinstance(event, Evaluated)]
    return started, losses, said, scores, result["task"]


# Prompts are shared by one and the same code for every objective of pairs: dpo alone shows it in the default run.
REPEATED = {("orpo", "share_prompt"), ("simpo", "share_prompt"), ("cpo", "share_prompt")}
CASES = [
    pytest.param(objective, key, marks=pytest.mark.slow if (objective, key) in REPEATED else ())
    for objective, own in OWN.items()
    for key in own
]
CASES += [pytest.param("dpo", key, marks=pytest.mark.slow) for key in READ]


@pytest.fixture(scope="module")
def reference(data, places, tmp_path_factory):
    """The outcome without the change; the same for several settings, so computed once."""
    found = {}

    def find(others, kind):
        key = f"{kind.__name__} {others}"
        found[key] = found.get(key) or outcome(others, tmp_path_factory.mktemp("reference"), data, places, kind)
        return found[key]

    return find


def test_the_comparison_of_settings_bites(data, places, reference, tmp_path):
    """Two runs with the same settings differ in nothing."""
    assert outcome({}, tmp_path, data, places, DpoConfig) == reference({}, DpoConfig)


@pytest.mark.parametrize(("objective", "key"), CASES)
def test_a_setting_of_preferences_matters(objective, key, data, places, reference, tmp_path):
    value, others = OWN[objective].get(key) or READ[key]
    kind = KINDS[objective]
    assert outcome(others | {key: value}, tmp_path, data, places, kind) != reference(others, kind)


def test_answers_of_one_kind_are_warned_of(data, tmp_path):
    rows = [{"prompt": f"q {i}", "completion": f"r {i}", "label": True} for i in range(6)]
    heard = []
    plan(config(data, tmp_path, KtoConfig, data=[write(tmp_path / "liked.jsonl", rows)], valid_split=0), [heard.append])
    assert any("all answers are wanted" in event.message for event in heard if isinstance(event, Warned))
    plan(config(data, tmp_path, KtoConfig, valid_split=0), [heard.append])
    assert sum("all answers are" in event.message for event in heard if isinstance(event, Warned)) == 1
