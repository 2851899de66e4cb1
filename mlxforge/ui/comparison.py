"""Runs side by side: tables in the terminal, curves over each other there or in a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlxforge.core.errors import RunError
from mlxforge.core.files import disk_errors
from mlxforge.ui.plot import Series, plot
from mlxforge.ui.state import smooth
from mlxforge.ui.units import NONE, count, model_name, number, one_line, rate, size

COLOURS = ("#4aa8ff", "#e8930c", "#41c98e", "#c23fb4", "#d6453d", "#8a6fe8", "#b8a13a", "#7f8c95")
GOOD = "bold #41c98e"
TITLES = {"train": "training loss, smoothed", "valid": "validation loss"}
LONG = 40  # letters of a setting
NARROW = 14  # columns of a run with the space before it: what is wider may fold, figures do not
# Figures that are not plain numbers, by the last part of their name.
SHOWN = {"peak_memory_bytes": size, "steps": lambda value: f"{value:,.0f}", "step": lambda value: f"{value:,.0f}",
         "trained_tokens": count, "skipped_updates": lambda value: f"{value:,.0f}", "tokens_per_second": count}  # fmt: skip


def colour(index: int) -> str:
    """The colour of a run by its place."""
    return COLOURS[index % len(COLOURS)]


def tables(found: Mapping[str, Any], width: int) -> Iterator[RenderableType]:
    """The tables of :func:`mlxforge.runs.comparison.compare_runs`: figures, settings and data.

    Runs that have no room side by side stand below each other.
    """
    runs = found["runs"]
    yield from _tables(runs, "figure", [*_heads(runs), *(_figure(key, row) for key, row in found["figures"].items())], width)
    settings = [[key, *(_setting(key, value) for value in values)] for key, values in found["settings"].items()]
    data = [[f"{part} (content)", *((value or NONE)[:10] for value in values)] for part, values in found["data"].items()]
    if rows := settings + data:
        yield Text("\nsettings and data that differ", "bold")
        yield from _tables(runs, "setting", rows, width)
    else:
        yield Text("\nno setting and no data differ")
    for note in found["notes"]:
        yield Text(f"! {note}", "yellow")


def curves(found: Mapping[str, Any], width: int, height: int = 16) -> Iterator[RenderableType]:
    """The losses of all runs over each other, each run in its own colour, with a legend."""
    for kind, title in TITLES.items():
        lines = [Series(*line, colour(index)) for index, line in enumerate(_lines(found, kind)) if len(line[0]) > 1]
        if lines:
            yield Text(f"\n{title}, by step", "bold")
            yield plot(lines, width, height).append("\n")
    legend = Text("\n")
    for index, run in enumerate(found["runs"]):
        legend.append("━━ ", colour(index)).append(f"{one_line(run['name'])}   ")
    yield legend


def draw_comparison(found: Mapping[str, Any], out: Path) -> None:
    """Training and validation loss of all runs over each other; the suffix of ``out`` is the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        RunError: no run has made a step yet.
        MlxforgeError: an unknown suffix, or ``out`` cannot be written.
    """
    from mlxforge.ui.figure import check_picture

    figure = check_picture(out)(figsize=(9, 8), layout="constrained")
    drawn = {kind: [line for line in _lines(found, kind) if len(line[0])] for kind in TITLES}
    kinds = [kind for kind in TITLES if drawn[kind]]
    if not kinds:
        raise RunError("no step to draw", where=", ".join(run["name"] for run in found["runs"]), fix="let them make a step")
    for axes, kind in zip(figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0], kinds, strict=True):
        for index, (xs, ys) in enumerate(_lines(found, kind)):
            marker = "o" if kind == "valid" else None
            axes.plot(xs, ys, color=colour(index), marker=marker, markersize=4, label=found["runs"][index]["name"])
        axes.set(ylabel=TITLES[kind])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    with disk_errors(out):
        figure.savefig(out, dpi=150)


def _lines(found: Mapping[str, Any], kind: str) -> Iterator[tuple[list[float], list[float]]]:
    """Steps and losses of each run, without what is not finite; the noisy ones are smoothed."""
    for one in found["curves"]:
        points = [(step, loss) for step, loss in one[kind] if loss - loss == 0]
        xs, ys = [float(step) for step, _ in points], [loss for _, loss in points]
        yield xs, smooth(ys) if kind == "train" and ys else ys


def _tables(runs: Sequence[Mapping[str, Any]], title: str, rows: Sequence[Sequence[Any]], width: int) -> Iterator[Table]:
    """A table of all runs, or several of as many as stand side by side."""
    heads = [title, *(Text(one_line(run["name"]), colour(index)) for index, run in enumerate(runs))]
    lines = [[cell if isinstance(cell, Text) else Text(one_line(str(cell))) for cell in row] for row in (heads, *rows)]
    first, *widths = (max(cell.cell_len for cell in cells) + 2 for cells in zip(*lines, strict=True))
    widths = [min(one, NARROW) for one in widths]
    begin = 0
    while begin < len(runs):
        end = begin + 1
        while end < len(runs) and first + sum(widths[begin : end + 1]) - 2 <= width:
            end += 1
        table = Table(box=None, pad_edge=False)
        for place, head in enumerate([lines[0][0], *lines[0][1 + begin : 1 + end]]):
            table.add_column(head, justify="right" if place else "left", overflow="fold")
        for line in lines[1:]:
            table.add_row(line[0], *line[1 + begin : 1 + end])
        yield table
        begin = end


def _heads(runs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for key in ("objective", "status", "model"):
        yield [key, *(model_name(str(run.get(key) or NONE)) for run in runs)]


def _figure(key: str, row: Mapping[str, Any]) -> list[Any]:
    """One line of figures, the best ones green where they differ."""
    known = [value for value in row["values"] if value is not None]
    best = {"lower": min, "higher": max}.get(row["better"], lambda _: None)(known)
    show = SHOWN.get(key.rpartition(".")[2], number)
    cells = [Text(NONE if value is None else show(value)) for value in row["values"]]
    if best is not None and len(set(known)) > 1:
        for cell, value in zip(cells, row["values"], strict=True):
            cell.stylize(GOOD if value == best else "")
    return [key.replace("_", " "), *cells]


def _setting(key: str, value: Any) -> str:
    if isinstance(value, float):
        return rate(value) if "learning_rate" in key else f"{value:g}"
    if key == "model":
        return model_name(str(value))
    shown = value if isinstance(value, str) else NONE if value is None else json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= LONG else f"…{shown[-LONG:]}"
