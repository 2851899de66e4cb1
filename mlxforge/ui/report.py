"""A report in the terminal: a table for each set where it fits, a line for each figure in a pipe; and the checks of a gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlxforge.evals.figures import (
    chance,
    figure,
    find_test,
    findings,
    labels,
    metrics_of,
    number,
    overall,
    sentence,
    set_names,
    signed,
    spread,
    standing,
    title,
)
from mlxforge.evals.report import Report, Value
from mlxforge.ui.units import one_line

STYLES = {"better": "#41c98e", "worse": "bold red", "mixed": "yellow", "": "", "unclear": "", "no clear change": "bright_black"}
MARKS = {"better": "▲", "worse": "▼", "unclear": " ", "": " "}
ARROWS = {"higher": "↑", "lower": "↓", "": ""}
FAR = 10_000  # columns of a console that cuts nothing
WORDS = {(True, False): ("passed", "#41c98e"), (True, True): ("passed", "yellow"), (False, False): ("FAILED", "bold red")}


def show_report(report: Report, console: Console | None = None) -> None:
    """Prints the figures and the verdict: tables on a terminal, else :func:`lines`."""
    shown = console or Console(highlight=False)
    if not shown.is_terminal:
        for line in lines(report):
            shown.print(Text(line), soft_wrap=True)
        return
    known = {one.name: f"  {one.kind}, {one.rows:,} rows" for one in report.sets}
    for name in set_names(report):
        shown.print(Text(f"\n{one_line(name)}", style="bold").append(known.get(name, ""), "not bold bright_black"))
        columns = [label for label in labels(report) if report.results.get(label, {}).get(name)]
        wide = _wide(report, name, columns)
        # The console cuts what it measures to its own width.
        fits = Console(width=FAR).measure(wide).maximum <= shown.width
        shown.print(wide if fits else _long(report, name, columns))
    shown.print()
    for text in verdict(report):
        shown.print(text)


def verdict(report: Report) -> Iterator[Text]:
    """Of each model against the first: what became of the main figure of every set, a line each."""
    known, sets = labels(report), len(set_names(report))
    for model, found in findings(report).items():
        text = Text(one_line(model), style="bold")
        text.append(f" against {one_line(known[0])}" if model != known[0] else "", "not bold bright_black")
        text.append(f"  {overall(found)}", f"not bold {STYLES[overall(found)]}".strip())
        for one in found:
            told = f"\n  {MARKS[one.standing]} {one_line(sentence([one], sets))}"
            text.append(told, f"not bold {STYLES[one.standing]}".strip())
        yield text


def lines(report: Report) -> Iterator[str]:
    """A line for each figure, for grep and awk: set, metric, model, value, interval, rows, difference to the first model."""
    known = labels(report)
    for name in set_names(report):
        for metric in metrics_of(report, name):
            for label in known:
                if (value := figure(report, label, name, metric)) is not None:
                    facts = (one_line(name), metric, one_line(label), *_told(report, label, name, metric, value))
                    yield "  ".join(fact for fact in facts if fact)
    for model, found in findings(report).items():
        against = f" against {one_line(known[0])}" if model != known[0] else ""
        facts = (f"{one_line(model)}{against}", overall(found), one_line(sentence(found, len(set_names(report)))))
        yield "  ".join(fact for fact in facts if fact)


def _told(report: Report, label: str, name: str, metric: str, value: Value) -> Iterator[str]:
    """The figure in words, its interval, its rows, and the difference to the first model."""
    yield number(value.value, value.unit)
    if bounds := spread(value.low, value.high):
        yield f"[{bounds}]"
    if value.n:
        yield f"n={value.n}"
    first = labels(report)[0]
    if label != first and (test := find_test(report, label, first, name, metric)):
        yield f"{signed(test.difference)} {chance(test.p)} {standing(test, value)}"
    if value.why:
        yield one_line(value.why)


def _wide(report: Report, name: str, columns: Sequence[str]) -> Table:
    """Metrics down, models across; the interval is below its value."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("metric", no_wrap=True)
    for label in columns:
        table.add_column(Text(one_line(label)), justify="right", no_wrap=True)
    for metric in metrics_of(report, name):
        cells = [_cell(report, label, name, metric) for label in columns]
        table.add_row(_heading(report, name, metric), *(Text("\n").join(cell) for cell in cells))
    return table


def _long(report: Report, name: str, columns: Sequence[str]) -> Table:
    """For narrow terminals: a line for each model below its metric."""
    table = Table(box=None, pad_edge=False, show_header=False, collapse_padding=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", overflow="fold")
    for metric in metrics_of(report, name):
        table.add_row(_heading(report, name, metric, "bold"), "", "")
        for label in columns:
            table.add_row(Text(f"  {one_line(label)}"), *_cell(report, label, name, metric))
    return table


def _heading(report: Report, name: str, metric: str, style: str = "") -> Text:
    """``exact match ↑``, ``ttft p50 ↓ s``: with the unit, where neither the figures nor the name have it."""
    values = (figure(report, label, name, metric) for label in labels(report))
    unit = next((value.unit for value in values if value and value.unit not in ("", "bytes", "tokens/s")), "")
    text = Text(f"{title(metric)} {ARROWS[metrics_of(report, name)[metric]]}".rstrip(), style=style)
    return text.append(f" {unit}" if unit else "", "not bold bright_black")


def _cell(report: Report, label: str, name: str, metric: str) -> tuple[Text, Text]:
    """The value with its mark, and its interval."""
    value = figure(report, label, name, metric)
    if value is None:
        return Text(""), Text("")
    first = labels(report)[0]
    test = find_test(report, label, first, name, metric) if label != first else None
    kind = standing(test, value)
    unit = value.unit if value.unit == "bytes" else ""
    bounds = spread(value.low, value.high, value.unit)
    return Text(f"{number(value.value, unit)} {MARKS[kind]}", STYLES[kind]), Text(_dashed(bounds) + "  ", "bright_black")


def _dashed(bounds: str) -> str:
    """``0.530–0.690``; as it is where a bound is below zero."""
    return bounds if "-" in bounds else bounds.replace(" to ", "–")


def show_checks(checks: Sequence[Mapping[str, Any]], passed: bool, console: Console | None = None) -> None:
    """The checks of a gate and its verdict: a table on a terminal, else a line each."""
    shown = console or Console(highlight=False)
    if shown.is_terminal:
        shown.print(_checks(checks))
    else:
        for check in checks:
            value, bounds = _reached(check)
            facts = (_word(check)[0], check["text"], value, f"[{bounds}]" if bounds else "", _about(check), check["why"])
            shown.print(Text("  ".join(one_line(fact) for fact in facts if fact)), soft_wrap=True)
    met = sum(bool(check["passed"]) for check in checks)
    word, style = WORDS[passed, False]
    shown.print(Text(f"{word}: {met} of {len(checks)} requirements met", style=style))


def _checks(checks: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column("requirement", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for check in checks:
        value, bounds = _reached(check)
        asked = Text(one_line(check["text"])).append(f"\n{one_line(_about(check))}", "bright_black")
        figures = Text(value).append(f"\n{_dashed(bounds)}", "bright_black")
        table.add_row(Text(*_word(check)), asked, figures, Text(one_line(check["why"])))
    return table


def _word(check: Mapping[str, Any]) -> tuple[str, str]:
    return WORDS[bool(check["passed"]), bool(check["passed"] and check["within_noise"])]


def _about(check: Mapping[str, Any]) -> str:
    """Which figure it was, where the requirement does not say so: ``sft against base: at most +0.020``."""
    told = f"{check['model']} against {check['against']}: {check['bound']}".rstrip(": ")
    return told if check["against"] else f"{check['model']}, {check['set']}"


def _reached(check: Mapping[str, Any]) -> tuple[str, str]:
    """The value, of a regression the difference, and its interval."""
    known = check["value"] is not None and check["against"]
    return signed(check["value"]) if known else number(check["value"]), spread(check["low"], check["high"])
