"""``mlxforge lr-find``."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlxforge.cli.shaping import JSON, Number, show_json, show_next
from mlxforge.cli.sweep import CONFIG, OBJECTIVE, SET, settings_of

if TYPE_CHECKING:
    from mlxforge.runs.lr_find import RateCurve

RATE = Number(0, min_open=True)


@click.command("lr-find")
@OBJECTIVE
@CONFIG
@SET
@click.option("--from", "low", type=RATE, default=1e-6, show_default=True, metavar="RATE", help="The first rate.")
@click.option("--to", "high", type=RATE, default=1.0, show_default=True, metavar="RATE", help="The last rate.")
@click.option("--steps", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Updates from one to the other.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the curve: a .png, .svg or .pdf file.")
@JSON
def lr_find(
    objective: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    low: float,
    high: float,
    steps: int,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Find a learning rate: it rises from update to update until the loss does.

    The same data, model and loop as in training, a minute long; nothing is kept. The smaller of two rates is suggested: where
    the loss falls fastest, and a tenth of the rate at which it was lowest.

    \b
    mlxforge lr-find -c handbook-sft
    mlxforge lr-find sft -c my.yaml --set lora.rank=8 --plot rates.png
    """
    from mlxforge.runs import lr_find as rates
    from mlxforge.ui.bars import bars
    from mlxforge.ui.figure import check_picture, draw_rates

    if plot is not None:
        check_picture(plot)
    found, config = settings_of(objective, file, assignments)
    with bars() as emit:
        curve = rates.lr_find(config, low, high, steps, emit)
    if plot is not None:
        draw_rates(curve.rates, curve.losses, curve.smoothed, _marks(curve), plot)
    use = _next(found, file, assignments, curve)
    if as_json:
        fields = ("suggested", "steepest", "tenth", "diverged", "rates", "losses", "smoothed")
        show_json({"objective": found, **{name: getattr(curve, name) for name in fields}, "next": use})
    else:
        _page(curve, plot)
        show_next(use)
    return 0 if curve.suggested else 1


def _next(objective: str, file: Path | None, assignments: tuple[str, ...], curve: RateCurve) -> list[str]:
    """Training at the suggested rate, and a sweep from there to where the loss was lowest."""
    if curve.suggested is None or curve.tenth is None:
        return []
    given = [word for assignment in assignments for word in ("--set", assignment)]
    words = shlex.join([objective, *(["-c", str(file)] if file else []), *given])
    over = shlex.quote(f"learning_rate={curve.suggested:g}..{10 * curve.tenth:.2g}:log")
    return [f"mlxforge {words} --learning-rate {curve.suggested:g}", f"mlxforge sweep {words} --over {over} --trials 8"]


def _marks(curve: RateCurve) -> dict[str, float]:
    marks = {"steepest fall": curve.steepest, "a tenth of the lowest": curve.tenth}
    return {name: rate for name, rate in marks.items() if rate is not None}


def _page(curve: RateCurve, plot: Path | None) -> None:
    import math

    from rich.console import Console

    from mlxforge.ui import plot as plots

    logs = [math.log10(rate) for rate in curve.rates]
    width = min(shutil.get_terminal_size().columns, 100)
    raw = plots.Series(logs, curve.losses, "bright_black", scatter=True)
    console = Console(highlight=False)
    console.print(plots.plot([raw, plots.Series(logs, curve.smoothed, "#4aa8ff")], width, 16))
    click.echo("loss over log10 of the learning rate; a line: smoothed")
    ended = "the loss diverged at" if curve.diverged else "the last rate was"
    click.echo(f"{ended} {curve.rates[-1]:.1e}, after {len(curve.rates)} steps")
    for name, rate in _marks(curve).items():
        click.echo(f"{name + ':':<24}{rate:.1e}")
    if curve.suggested:
        click.echo(f"{'suggested:':<24}{curve.suggested:.1e}")
    else:
        click.echo("the loss fell at no rate: more --steps, a larger batch_tokens, or look at the data", err=True)
    if plot is not None:
        click.echo(f"wrote {plot}")
