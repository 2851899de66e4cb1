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
WORDS = {(True, False): ("passed", "#41c98e"), (True, True): ("passed", "yellow"), (False, False): ("FAILED", "bold red")}


def show_report(report: Report, console: Console | None = None) -> None:
    """Prints the verdict and the figures: tables on a terminal, else :func:`lines`."""
    shown = console or Console(highlight=False)
    if not shown.is_terminal:
        for line in lines(report):
            shown.print(Text(line), soft_wrap=True)
        return
    for name in set_names(report):
        shown.print(Text(f"\n{one_line(name)}", style="bold"), *_facts(report, name))
        columns = [label for label in labels(report) if report.results.get(label, {}).get(name)]
        wide = _wide(report, name, columns)
        fits = shown.measure(wide).maximum <= shown.width
        shown.print(wide if fits else _long(report, name, columns))
    shown.print()
    for text in verdict(report):
        shown.print(text)


def verdict(report: Report) -> Iterator[Text]:
    """A line for each model against the first: what became of the main figure of every set."""
    known, sets = labels(report), len(set_names(report))
    for model, found in findings(report).items():
        word = overall(found)
        text = Text(one_line(model), style="bold")
        if model != known[0]:
            text.append(f" against {one_line(known[0])}", "not bold bright_black")
        text.append(f"  {word}" if word else "", f"not bold {STYLES[word]}".strip())
        yield text.append(f"  {one_line(sentence(found, sets))}", "not bold")


def lines(report: Report) -> Iterator[str]:
    """A line for each figure, for grep and awk: set, metric, model, value, interval, rows, difference to the first model."""
    known = labels(report)
    for name in set_names(report):
        for metric in metrics_of(report, name):
            for label in known:
                if (value := figure(report, label, name, metric)) is not None:
                    facts = (one_line(name), metric, one_line(label), *_told(report, label, name, metric, value))
                    yield "  ".join(fact for fact in facts if fact)
    for text in verdict(report):
        yield text.plain


def _told(report: Report, label: str, name: str, metric: str, value: Value) -> Iterator[str]:
    """The figure in words, its interval, its rows, and the difference to the first model."""
    yield number(value.value, value.unit)
    if bounds := spread(value.low, value.high):
        yield f"[{bounds}]"
    if value.n:
        yield f"n={value.n}"
    first = labels(report)[0]
    if label != first and (test := find_test(report, label, first, name, metric)):
        yield f"{signed(test.difference)} {chance(test.p)} {standing(test, value.better)}"
    if value.why:
        yield one_line(value.why)


def _facts(report: Report, name: str) -> Iterator[Text]:
    for one in report.sets:
        if one.name == name:
            yield Text(f"{one.kind}, {one.rows:,} rows", style="bright_black")


def _wide(report: Report, name: str, columns: Sequence[str]) -> Table:
    """Metrics down, models across."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("metric", no_wrap=True)
    for label in columns:
        table.add_column(one_line(label), justify="right", no_wrap=True)
    for metric, better in metrics_of(report, name).items():
        cells = [_cell(report, label, name, metric) for label in columns]
        table.add_row(Text(f"{title(metric)} {ARROWS[better]}"), *cells)
    return table


def _cell(report: Report, label: str, name: str, metric: str) -> Text:
    """The value with its mark, and the interval below it."""
    value = figure(report, label, name, metric)
    if value is None:
        return Text("")
    first = labels(report)[0]
    test = find_test(report, label, first, name, metric) if label != first else None
    kind = standing(test, value.better)
    text = Text(f"{number(value.value, value.unit)} {MARKS[kind]}", style=STYLES[kind])
    if bounds := spread(value.low, value.high):
        text.append(f"\n{bounds}  ", "not bold bright_black")
    return text


def _long(report: Report, name: str, columns: Sequence[str]) -> Table:
    """A line for each metric and model, for narrow terminals."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("metric", overflow="fold")
    table.add_column("model", overflow="fold")
    for heading in ("value", "95 % interval"):
        table.add_column(heading, justify="right", overflow="fold")
    for metric, better in metrics_of(report, name).items():
        for at, label in enumerate(columns):
            value = figure(report, label, name, metric)
            if value is not None:
                shown = _cell(report, label, name, metric).split("\n")[0]
                bounds = Text(spread(value.low, value.high), style="bright_black")
                table.add_row(
                    Text(f"{title(metric)} {ARROWS[better]}" if at == 0 else ""), Text(one_line(label)), shown, bounds
                )
        table.add_section()
    return table


def show_checks(checks: Sequence[Mapping[str, Any]], passed: bool, console: Console | None = None) -> None:
    """The checks of a gate and its verdict."""
    shown = console or Console(highlight=False)
    if shown.is_terminal:
        shown.print(_checks(checks))
    else:
        for check in checks:
            facts = (_word(check)[0], one_line(check["text"]), one_line(check["model"]), *_reached(check), check["why"])
            shown.print(Text("  ".join(fact for fact in facts if fact)), soft_wrap=True)
    met = sum(bool(check["passed"]) for check in checks)
    word, style = WORDS[passed, False]
    shown.print(Text(f"{word}: {met} of {len(checks)} requirements met", style=style))


def _checks(checks: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading, justify in (("", "left"), ("requirement", "left"), ("model", "left"), ("value", "right"), ("bound", "left")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("", overflow="fold")
    for check in checks:
        value, bounds, bound = _reached(check)
        figures = Text(value).append(f"\n{bounds}" if bounds else "", "bright_black")
        names = (Text(one_line(check[key])) for key in ("text", "model"))
        table.add_row(Text(*_word(check)), *names, figures, Text(bound), Text(one_line(check["why"])))
    return table


def _word(check: Mapping[str, Any]) -> tuple[str, str]:
    return WORDS[bool(check["passed"]), bool(check["passed"] and check["within_noise"])]


def _reached(check: Mapping[str, Any]) -> tuple[str, str, str]:
    bounds = spread(check["low"], check["high"])
    return number(check["value"]), f"[{bounds}]" if bounds else "", str(check["bound"])
