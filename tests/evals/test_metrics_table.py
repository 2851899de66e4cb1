"""The table of metrics: its names are the contract, what fits a set is chosen, what does not is an error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlxforge.core.errors import ConfigError, MissingExtraError
from mlxforge.evals import metrics
from mlxforge.evals.graded import Graded, Likelihood, Timing
from mlxforge.evals.metrics import GIVES, GROUPS, METRICS, NEEDS, asked_by, chosen, column, value

NAMES = """perplexity bpb exact_match f1 rouge1 rouge2 rougeL bleu choice_accuracy choice_accuracy_norm preference_accuracy
preference_margin json_valid schema_valid command arguments flags command_exact ece run_rate confirm_rate clarify_rate
stop_rate repetition ttft_p50 ttft_p95 latency_p50 latency_p95 tokens_per_second peak_memory retrieval_hit win_rate
rubric""".split()
FULL = Graded(
    answer='{"command": "a", "arguments": {}, "flags": [], "confidence": 0.95, "action": "run"}',
    finish="stop",
    references=('{"command": "a", "arguments": {}, "flags": [], "confidence": 0.95, "action": "run"}',),
    schema={},
    likelihood=Likelihood(3.0, 2, 8),
    continuations=(Likelihood(1.0, 1, 1), Likelihood(2.0, 1, 1)),
    timing=Timing(0.1, 0.5, 3),
    hit=1.0,
    win=0.5,
    rubric=4.0,
)


def names(found, at):
    return [metric.name for metric in found.metrics[at]]


def test_the_names_that_others_rely_on():
    assert set(NAMES) <= set(METRICS)
    assert {"text", "answers", "choices", "pairs", "commands", "latency"} <= set(GROUPS)
    assert not set(METRICS) & set(GROUPS)
    assert len(METRICS) == sum(map(len, GROUPS.values()))


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_is_of_something_and_reads_it(metric):
    assert metric.needs in NEEDS
    assert metric.unasked in ("", *NEEDS)
    assert metric.better in ("higher", "lower", "")
    assert metric.help
    assert metric.package in ("", *metrics.PACKAGES)
    if metric.terms is None:
        return
    found = value(column(metric, [FULL, FULL]))
    # The only answer is sure of itself: no accuracy of what was not said.
    unsaid = metric.name in ("confirm_accuracy", "suggest_accuracy", "ask_accuracy", "clarify_accuracy")
    unsaid = unsaid or metric.name == "judge_kappa"  # where all are right, chance alone agrees
    assert (found.value is None) == unsaid
    assert value(column(metric, [Graded()])).value is None
    assert column(metric, []).scores() == []


def test_without_names_a_set_gets_all_that_fits_it():
    found = chosen([], GIVES)
    assert names(found, "text") == ["perplexity", "bpb", "peak_memory"]
    assert names(found, "choices") == ["choice_accuracy", "choice_accuracy_norm", "peak_memory"]
    assert names(found, "pairs") == ["preference_accuracy", "preference_margin", "peak_memory"]
    assert {"exact_match", "rougeL", "stop_rate", "ttft_p50"} <= set(names(found, "chat"))
    assert {"command_exact", "json_valid", "ece", "stop_rate"} <= set(names(found, "commands"))
    assert not {"exact_match", "schema_valid"} & set(names(found, "commands"))
    assert "json_valid" not in names(found, "chat")
    assert found.notes == []


def test_rows_and_options_give_more():
    found = chosen([], {"a": {*GIVES["chat"], "json", "schema", "hit", "win"}})
    assert {"json_valid", "schema_valid", "retrieval_hit", "win_rate"} <= set(names(found, "a"))


def test_names_and_groups_are_taken_in_the_tables_order_by_the_sets_they_fit():
    found = chosen(["f1", "text", "exact_match"], {"questions": GIVES["chat"], "retention": GIVES["text"]})
    assert names(found, "questions") == ["exact_match", "f1"]
    assert names(found, "retention") == ["perplexity", "bpb"]


def test_bleu_is_taken_where_a_reference_has_four_words():
    short, long = asked_by(["Paris", "the red mill"]), asked_by(["Paris", "by the red mill"])
    assert (short, long) == (set(), {"phrases"})
    assert "bleu" not in names(chosen([], {"a": {*GIVES["chat"], *short}}), "a")
    assert "bleu" in names(chosen([], {"a": {*GIVES["chat"], *long}}), "a")
    assert names(chosen(["bleu"], {"a": GIVES["chat"]}), "a") == ["bleu"]


def test_references_in_json_ask_for_json():
    assert asked_by(["Paris", '{"a": 1}']) == {"json"}


def test_json_can_be_asked_of_any_answers():
    assert names(chosen(["json_valid"], {"a": GIVES["chat"]}), "a") == ["json_valid"]


def test_a_group_is_what_of_it_fits():
    assert names(chosen(["commands"], {"a": GIVES["chat"]}), "a") == ["json_valid"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("exactmatch", "unknown metric 'exactmatch' (did you mean 'exact_match'?)"),
        ("comands", "unknown metric 'comands' (did you mean 'commands'?)"),
        ("bpb", "'bpb' does not fit the set 'qa': it needs text (fits: exact_match, f1,"),
        ("schema_valid", "'schema_valid' does not fit the set 'qa': it needs rows with a JSON schema"),
        ("pairs", "'pairs' does not fit the set 'qa': it needs chosen and rejected answers"),
        ("win_rate", "it needs a judge (--judge)"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_what_does(name, told):
    with pytest.raises(ConfigError) as found:
        chosen(["f1", name], {"qa": GIVES["chat"]})
    assert str(found.value).startswith("--metrics: ")
    assert told in str(found.value)


def test_the_error_tells_of_each_of_several_sets():
    with pytest.raises(ConfigError, match=r"any of the sets qa, pairs: .* \(qa fits: .*; pairs fits: preference_accuracy, "):
        chosen(["bpb"], {"qa": GIVES["chat"], "pairs": GIVES["pairs"]})


def test_without_the_extra_a_metric_that_was_named_is_an_error_and_others_are_left_out_with_a_note(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None if name in ("rouge_score", "sacrebleu") else object())
    with pytest.raises(MissingExtraError, match=r"'rougeL' needs the package 'rouge-score' \(pip install 'mlxforge\[eval\]'\)"):
        chosen(["rougeL"], {"qa": GIVES["chat"]})
    found = chosen([], {"qa": GIVES["chat"] | {"phrases"}})
    assert not {"rouge1", "bleu"} & set(names(found, "qa"))
    assert found.notes == [
        "left out without rouge-score, sacrebleu: rouge1, rouge2, rougeL, bleu (pip install 'mlxforge[eval]')"
    ]


def test_the_page_on_metrics_has_them_all_with_the_way_that_is_good():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = [line.split("|")[1:] for line in page.splitlines() if line.startswith("| ")]
    told = {name: row[2].strip() for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    assert told == {metric.name: metric.better for metric in METRICS.values()}
    groups = [group for row in rows for group in re.findall(r"`(\w+)`", row[0])]
    assert groups == list(GROUPS)


def test_memory_is_not_a_metric_of_rows():
    with pytest.raises(ConfigError, match="peak_memory"):
        column(METRICS["peak_memory"], [FULL])


def test_the_table_is_read_without_anything_heavy():
    code = "import sys, mlxforge.evals.metrics; print(*{n.partition('.')[0] for n in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "mlx", "rouge_score", "sacrebleu", "nltk", "jsonschema"} & set(done.stdout.split())
