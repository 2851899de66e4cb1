"""Plans: a forecast without weights, a probe on this machine, and settings that fit."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlxforge.cli.main import run
from mlxforge.core.config import flags_layer, resolve
from mlxforge.core.errors import ConfigError
from mlxforge.core.events import ignore
from mlxforge.core.settings import CptConfig, DpoConfig, OrpoConfig, SftConfig
from mlxforge.models.shapes import shapes
from mlxforge.runs.fit import MARGIN, fit, parse_size, smaller
from mlxforge.runs.forecast import PARTS, Batch, Forecast, Work, forecast, shapes_for
from mlxforge.runs.plan import outline, plan
from mlxforge.training.probe import largest_and_typical

HANDBOOK = {
    CptConfig: "sample:handbook/documents",
    SftConfig: "sample:handbook/questions.train.jsonl",
    DpoConfig: "sample:handbook/pairs.train.jsonl",
    OrpoConfig: "sample:handbook/pairs.train.jsonl",
}
CASES = [
    (SftConfig, {"batch_tokens": 512}),
    pytest.param(DpoConfig, {"batch_tokens": 1024}, marks=pytest.mark.slow),
    pytest.param(CptConfig, {"batch_tokens": 2048, "lora.kind": "full", "grad_checkpoint": True}, marks=pytest.mark.slow),
]


def settings_of(kind, flags=None):
    return resolve(kind, flags_layer({"data": [HANDBOOK[kind]], "sample_tokens": 0, **(flags or {})}))


@pytest.fixture(scope="module")
def tiny():
    return shapes_for(CptConfig())


@pytest.mark.parametrize(("kind", "flags"), CASES, ids=lambda one: getattr(one, "__name__", ""))
def test_what_is_forecast_is_what_a_probe_measures(kind, flags):
    settings = settings_of(kind, flags)
    said, measured = plan(settings), plan(settings, probe=True)
    assert (said["source"], measured["source"]) == ("forecast", "probe")
    assert set(said["memory"]) == {*PARTS, "total"} == set(measured["memory"])
    assert sum(said["memory"][part] for part in PARTS) == said["memory"]["total"]
    assert 0.8 < said["memory"]["total"] / measured["memory"]["total"] < 1.2
    for part in ("weights", "adapters", "optimizer"):
        assert said["memory"][part] == pytest.approx(measured["memory"][part], abs=2048)
    assert measured["seconds"] > 0 < said["seconds"]


def bench():
    """scripts/bench_forecast.py, whose grid this is."""
    file = Path(__file__).resolve().parents[2] / "scripts" / "bench_forecast.py"
    spec = importlib.util.spec_from_file_location("bench_forecast", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("job", ["cpt", "sft", "dpo", "orpo", "kto"])
@pytest.mark.parametrize("model", ["tiny", "4-bit", "large vocabulary", "small vocabulary"])
def test_memory_is_forecast_within_a_fifth_over_the_grid(model, job):
    for name, said, measured, *_ in bench().ratios([f"{model}, {job}, "]):
        assert 0.8 < said / measured < 1.2, name


def test_micro_batches_of_all_sizes_are_looked_at(tmp_path):
    """The largest need not be the one that needs most: above some size a CPU computes logits at once."""
    sizes = sorted(one.slots for one in outline(settings_of(SftConfig, {"batch_tokens": 256}), ignore, tmp_path).work.largest)
    assert len(sizes) > 10
    assert sizes[0] < 0.8 * sizes[-1]


def test_no_weights_are_read_for_a_forecast(tmp_path, tiny):
    """A hub model's description alone: what --probe is not asked for needs no weights."""
    from mlxforge.models.hub import resolve_model

    folder = tmp_path / "described"
    folder.mkdir()
    for file in resolve_model("tiny").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    assert shapes_for(CptConfig(model=str(folder))) == tiny


# The laws of the forecast.


def test_more_of_anything_takes_more(tiny):
    def total(batch=None, model=tiny, **flags):
        batch = batch or Batch(1024, 1024, 1024 * 128)
        return forecast(resolve(CptConfig, flags_layer(flags)), Work((batch,), 1), model=model).total

    assert total() < total(Batch(2048, 1024, 2048 * 128)) < total(Batch(2048, 2048, 2048 * 128))
    assert (
        total(Batch(2048, 64, 2048 * 128))
        < total(Batch(2048, 64, 2048 * 1024))
        < total(Batch(2048, 64, 2048 * 1024, dense=True))
    )
    assert total(accumulate=2) > total()
    assert total(optimizer="adafactor") < total(optimizer="lion") < total(optimizer="adamw")
    assert total(Batch(8192, 64, 8192 * 256), grad_checkpoint=True) < total(Batch(8192, 64, 8192 * 256))
    assert total(model=replace(tiny, item=2)) < total()
    assert forecast(CptConfig(), model=tiny).total > total()  # without data: full micro-batches of the longest rows


def test_a_large_set_that_is_scored_counts(tiny):
    """Few trained tokens, and a text of which every token is scored: the peak is in the evaluation."""
    batch = Batch(512, 8, 512 * 64)
    alone = forecast(CptConfig(), Work((batch,), 1), model=tiny)
    both = forecast(CptConfig(), Work((batch,), 1, (Batch(8192, 8192, 8192 * 64),)), model=tiny)
    assert alone.parts["evaluation"] == 0 < both.parts["evaluation"]
    assert {**both.parts, "evaluation": 0} == alone.parts


# What fits.


def work_of(lines, width, trained=None):
    return Work((Batch(lines * width, trained or lines * width, lines * width**2),), 10 * lines * width)


def test_what_fits_is_left_alone(tiny):
    assert fit(CptConfig(), tiny, work_of(4, 256), 1 << 34).changes == {}


def test_small_micro_batches_come_before_anything_slower(tiny):
    config, work = CptConfig(batch_tokens=4096, max_length=256), work_of(16, 256)
    whole = forecast(config, work, model=tiny).total
    chosen = fit(config, tiny, work, int(0.7 * MARGIN * whole))
    assert chosen.changes == {"batch_tokens": 2048, "accumulate": 2}
    assert 1 < chosen.slowdown < 1.1
    assert MARGIN * chosen.forecast.total <= 0.7 * MARGIN * whole


def test_rows_are_shortened_last_and_it_is_said(tiny):
    config, work = CptConfig(batch_tokens=1024, max_length=1024), work_of(1, 1024)
    recomputed = forecast(CptConfig(grad_checkpoint=True), work, model=tiny).total
    chosen = fit(config, tiny, work, int(0.8 * recomputed), rows=[1024, 100, 600])
    assert chosen.changes["max_length"] == 512
    assert "max_length 512 instead of 1024: 2 of 3 rows are longer and become several windows" in " ".join(chosen.notes)


def test_long_models_are_recomputed():
    """Where one line is the least there can be, layers are recomputed before it is shortened."""
    deep = shapes(
        {
            "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 24, "intermediate_size": 512, "vocab_size": 2048,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        },
        CptConfig().lora,
    )  # fmt: skip
    config, work = CptConfig(batch_tokens=1024, max_length=1024), work_of(1, 1024)
    chosen = fit(config, deep, work, forecast(config, work, model=deep).total // 2)
    assert chosen.changes == {"grad_checkpoint": True}
    assert chosen.told()["flags"] == "--grad-checkpoint"
    assert 1.2 < chosen.slowdown < 1.6


def test_what_cannot_fit_says_the_least_and_what_helps(tiny):
    with pytest.raises(ConfigError, match=r"not enough: the least that this run needs is [0-9,.]+ MB") as raised:
        fit(CptConfig(), tiny, work_of(4, 256), 1 << 20)
    assert "4 bits" in str(raised.value)


def test_a_probe_corrects_what_fits(tiny):
    config, work = CptConfig(max_length=256), work_of(16, 256)
    whole = forecast(config, work, model=tiny).total
    assert fit(config, tiny, work, int(1.5 * whole)).changes == {}
    assert fit(config, tiny, work, int(1.5 * whole), correction=2.0).changes
    # What was measured needs less room above it than what was counted.
    assert fit(config, tiny, work, int(1.15 * whole), correction=1.0).told()["headroom"] == 0.1
    assert fit(config, tiny, work, int(1.15 * whole)).changes


def test_a_probe_takes_the_micro_batch_that_the_forecast_names_as_the_worst():
    batches = [Batch(slots, trained, slots) for slots, trained in ((100, 100), (200, 150), (120, 10), (210, 20))]
    stream = type("Stream", (), {"batch": lambda _, index: batches[index], "__len__": lambda _: 4})()
    assert largest_and_typical(stream)[0] == batches[3]
    assert largest_and_typical(stream, lambda batch: batch.trained)[0] == batches[1]


def test_a_smaller_batch_has_whole_lines():
    assert smaller(Batch(4096, 2048, 4096 * 256), 1000, 1024) == Batch(768, 384, 768 * 256)
    assert smaller(Batch(256, 256, 256 * 256), 100, 128) == Batch(128, 128, 128 * 128)


@pytest.mark.parametrize(("text", "size"), [("16GB", 16 << 30), ("800 MB", 800 << 20), ("1.5g", 3 << 29), ("12GiB", 12 << 30)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "nine", "-3GB", "0", "nan", "GB", "inf"])
def test_bad_sizes(text):
    with pytest.raises(ConfigError, match="no size"):
        parse_size(text)


def test_a_plan_that_fits_is_the_plan_of_the_changed_settings():
    settings = settings_of(SftConfig)
    chosen = plan(settings, memory=100 << 20)
    changed = plan(settings_of(SftConfig, chosen["fit"]["changes"]))
    assert chosen["fit"]["changes"]["batch_tokens"] < settings.batch_tokens
    for key in ("memory", "steps", "micro_batches", "padding"):
        assert chosen[key] == changed[key]
    assert chosen["memory"]["total"] * MARGIN < 1.05 * (100 << 20)


def test_a_correction_scales_what_is_counted_least_surely(tiny):
    said = forecast(CptConfig(), work_of(4, 256), model=tiny)
    twice = said.corrected(2.0)
    assert twice.passing == pytest.approx(2 * said.passing, abs=2)
    assert twice.total - said.total == twice.passing - said.passing


# The command.


def test_plan_and_dry_run_say_the_same(capsys):
    words = ["--model", "tiny", "--data", HANDBOOK[SftConfig], "--memory", "100MB", "--json"]
    told = []
    for line in (["plan", "sft", *words], ["sft", *words, "--dry-run"]):
        assert run(line, debug=False) == 0
        told.append(json.loads(capsys.readouterr().out))
    for one in told:
        one["plan"].pop("seconds")  # the machine's speed is measured anew
    assert told[0] == told[1]
    assert told[0]["plan"]["fit"]["flags"].startswith("--batch-tokens ")
    assert told[0]["plan"]["memory"]["total"] < 100 << 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "sft", "--memory", "2MB"], "are not enough"),
        (["plan", "sft", "--memory", "much"], "no size"),
        (["sft", "--memory", "9GB"], "add --dry-run"),
        (["sft", "--probe"], "add --dry-run"),
    ],
)
def test_bad_plans_are_one_line(capsys, words, said):
    assert run([*words, "--model", "tiny", "--data", HANDBOOK[SftConfig]], debug=False) == 2
    assert said in capsys.readouterr().err


def test_the_forecast_is_public():
    said = forecast(CptConfig())
    assert isinstance(said, Forecast)
    assert said.seconds is None
    assert said.total == sum(said.parts.values())
