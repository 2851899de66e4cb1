"""``mlxforge runs compare``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlxforge.cli.runs import FOLDER
from mlxforge.cli.shaping import JSON, show_json


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@FOLDER
@click.option("--plot", "picture", type=click.Path(path_type=Path), metavar="FILE", help="Draw the curves: .png, .svg or .pdf.")
@JSON
def compare(names: tuple[str, ...], runs_dir: Path, picture: Path | None, as_json: bool) -> None:
    """Hold runs side by side: settings that differ, figures, losses over each other.

    \b
    mlxforge runs compare plain higher-rank
    mlxforge runs compare a b c --plot losses.png

    The best figure of a line is green. Curves are drawn on a terminal, and by --plot; --json has their points.
    """
    from mlxforge.runs.comparison import compare_runs

    found = compare_runs(names, runs_dir)
    if picture:
        from mlxforge.ui.comparison import draw_comparison

        draw_comparison(found, picture)
    if as_json:
        show_json(found | ({"plot": str(picture)} if picture else {}))
        return
    from mlxforge.ui.comparison import curves, tables
    from mlxforge.ui.console import console

    out = console()
    for part in tables(found, out.width):
        out.print(part)
    if sys.stdout.isatty():
        for part in curves(found, out.width):
            out.print(part)
    if picture:
        click.echo(f"wrote {picture}")
