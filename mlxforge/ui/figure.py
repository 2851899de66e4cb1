"""The curves of a run as a picture file, drawn by matplotlib (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxforge.core import eventlog
from mlxforge.core.errors import MissingExtraError, MlxforgeError, RunError
from mlxforge.core.files import disk_errors
from mlxforge.ui.state import Evaluation, State, smooth

COLOURS = {"train": "#2f7fd6", "valid": "#e8930c", "retention": "#c23fb4"}
FORMATS = (".png", ".svg", ".pdf")


def draw_curves(log: Path, out: Path) -> None:
    """Loss (raw, smoothed, evaluated sets) over learning rate, from an event log; the suffix of ``out`` is the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        RunError: the log has no step yet.
        MlxforgeError: an unknown suffix, no such folder, or ``out`` cannot be written.
    """
    Figure = check_picture(out)
    state = State()
    for event in eventlog.replay(log):
        state.hear(event)
    if not state.loss:
        raise RunError("no step to draw", where=str(log), fix="let the run make its first step")
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _losses(above, state)
    below.plot(state.learning_rate.xs, state.learning_rate.ys, color="#2f9e6e", linewidth=1.5)
    below.set(ylabel="learning rate", xlabel="step")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(" · ".join(part for part in (state.run, state.objective, state.model) if part))
    with disk_errors(out):
        figure.savefig(out, dpi=150)


def check_picture(out: Path) -> Any:
    """matplotlib's Figure, to draw a file of that name.

    Raises:
        MissingExtraError, MlxforgeError: as :func:`draw_curves`.
    """
    if out.suffix.lower() not in FORMATS:
        raise MlxforgeError(
            f"cannot draw '{out.suffix or out.name}'", where=str(out), fix=f"end the name in {', '.join(FORMATS)}"
        )
    if not out.parent.is_dir():
        raise MlxforgeError("no such folder", where=str(out.parent), fix="make it, or choose another")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot", "drawing curves") from None
    return Figure


def draw_rates(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], marks: Mapping[str, float], out: Path
) -> None:
    """Loss over learning rate, with named rates marked on the smoothed curve; errors as :func:`draw_curves`."""
    figure = check_picture(out)(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, ".", color=COLOURS["train"], alpha=0.35, markersize=4)
    axes.plot(rates, smoothed, color=COLOURS["train"], linewidth=1.8, label="smoothed")
    for colour, (name, rate) in zip((COLOURS["valid"], COLOURS["retention"]), marks.items(), strict=False):
        axes.axvline(rate, color=colour, linestyle="--", linewidth=1.2, label=f"{name}: {rate:.1e}")
    axes.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="loss",
        ylim=(0.9 * min(losses), 1.3 * max(smoothed[: len(smoothed) // 2 + 1])),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with disk_errors(out):
        figure.savefig(out, dpi=150)


def _losses(axes: object, state: State) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    axes.plot(state.loss.xs, state.loss.ys, color=COLOURS["train"], alpha=0.25, linewidth=0.8)
    axes.plot(state.loss.xs, smooth(state.loss.ys), color=COLOURS["train"], linewidth=1.8, label="train (smoothed)")
    for name, evaluation in state.evaluations.items():
        axes.plot(*_points(evaluation), color=COLOURS.get(name), marker="o", markersize=4, label=name)
    if state.best:
        axes.plot([state.best.step], [state.best.loss], "*", markersize=13, color=COLOURS["valid"], label="best")
    axes.set_ylabel("loss (nats a token)")
    axes.legend(frameon=False)


def _points(evaluation: Evaluation) -> tuple[list[float], list[float]]:
    return evaluation.curve.xs, evaluation.curve.ys
