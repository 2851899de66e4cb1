"""A report in the terminal: every figure at every width, whole lines in a pipe."""

from __future__ import annotations

import io

import pytest
from report_makes import LABELS, report, value
from rich.cells import cell_len
from rich.console import Console

from mlxforge.evals.figures import number
from mlxforge.evals.report import ModelInfo, Report, SetInfo
from mlxforge.ui.report import show_checks, show_report

CHECK = {
    "text": "retention.bpb:0.02",
    "model": "sft",
    "set": "retention",
    "metric": "bpb",
    "value": 0.03,
    "low": 0.015,
    "high": 0.045,
    "bound": "at most +0.020",
    "against": "base",
    "passed": True,
    "within_noise": True,
    "why": "within noise",
}


def drawn(show, width, terminal=True):
    out = io.StringIO()
    show(Console(file=out, width=width, force_terminal=terminal, color_system=None, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40])
def test_every_figure_at_every_width(width):
    text = drawn(lambda console: show_report(report(), console), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for label, _, _, one in report().values():
        assert label in text
        shown = number(one.value, one.unit if one.unit == "bytes" else "")
        assert shown in text
        if one.low is not None:
            assert f"{number(one.low)}–{number(one.high)}" in text


def test_models_stand_side_by_side_where_they_fit():
    wide = drawn(lambda console: show_report(report(), console), 80).splitlines()
    heading = next(line for line in wide if line.startswith("metric"))
    assert heading.split() == ["metric", *LABELS]
    (exact,) = [line for line in wide if line.startswith("exact match")]
    assert exact.split() == ["exact", "match", "↑", "0.025", "0.050", "0.600", "▲"]


def test_the_verdict_comes_last():
    text = drawn(lambda console: show_report(report(), console), 80)
    assert [line.strip() for line in text.splitlines()[-3:]] == [
        "sft against base  mixed",
        "▲ handbook exact match 0.025 → 0.600, p<0.001",
        "▼ retention bpb 1.200 → 1.230, p=0.004",
    ]


def test_a_pipe_gets_a_line_for_each_figure():
    lines = drawn(lambda console: show_report(report(), console), 40, terminal=False).splitlines()
    assert len(lines) == len(list(report().values())) + 2
    assert "handbook  exact_match  sft  0.600  [0.450 to 0.750]  n=40  +0.575 p<0.001 better" in lines
    assert "retention  perplexity  cpt  –  tokenizers differ" in lines
    assert lines[-1].startswith("sft against base  mixed  handbook exact match 0.025 → 0.600")


def test_foreign_names_do_no_harm():
    bad = "[bold]x[/bold]\x1b[31m\n"
    made = Report(
        models=[ModelInfo(label=bad, name=bad, kind="base")],
        sets=[SetInfo(name=bad, path=bad, kind="text", rows=1)],
        results={bad: {bad: {"bpb": value(1.5, why=bad)}}},
    )
    for terminal in (True, False):
        text = drawn(lambda console: show_report(made, console), 80, terminal)
        assert "[bold]x[/bold] [31m" in text
        assert "\x1b[31m" not in text


def test_an_empty_report_is_nothing():
    assert drawn(lambda console: show_report(Report(), console), 80).strip() == ""


def test_checks_at_every_width():
    for width in (100, 50, 40):
        text = drawn(lambda console: show_checks([CHECK], True, console), width)
        assert max(cell_len(line) for line in text.splitlines()) <= width
        for words in ("passed", "+0.030", "0.015–0.045", "passed: 1 of 1 requirements met"):
            assert words in text
    line = drawn(lambda console: show_checks([CHECK], True, console), 40, terminal=False).splitlines()[0]
    assert line == "passed  retention.bpb:0.02  +0.030  [0.015 to 0.045]  sft against base: at most +0.020  within noise"
