"""``mlxforge runs list``, and how lineage is drawn."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mlxforge.cli.runs import FOLDER, JSON

WHERE = click.option(
    "--in",
    "places",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Look for fused and exported models here too; repeatable. [always: this folder and that of the runs]",
)


@click.command("list")
@FOLDER
@click.option("--tree", is_flag=True, help="As a tree: base, runs, fused and exported models, each with its hash.")
@WHERE
@JSON
def list_command(runs_dir: Path, tree: bool, places: tuple[Path, ...], as_json: bool) -> None:
    """List all runs, the newest last.

    \b
    mlxforge runs list
    mlxforge runs list --tree
    """
    from mlxforge.runs.record import list_runs

    if tree:
        _trees(runs_dir, places, as_json)
        return
    found = list_runs(runs_dir)
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(found), indent=2, ensure_ascii=False))
    elif not found:
        click.echo(f"no runs in {runs_dir}")
    else:
        _table(found)


def _trees(runs_dir: Path, places: tuple[Path, ...], as_json: bool) -> None:
    from mlxforge.runs.lineage import lineage_tree, searched

    tree = lineage_tree(runs_dir, searched(runs_dir, places))
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(tree), indent=2, ensure_ascii=False))
    elif not tree:
        click.echo(f"no runs in {runs_dir}")
    else:
        draw(tree)


def draw(tree: Sequence[Any], mark: str = "") -> None:
    """Trees of lineage on stdout; the run at path ``mark`` stands out."""
    from rich.console import Console

    from mlxforge.ui.lineage import pictures

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for picture in pictures(tree, mark):
        console.print(picture)


def _table(found: Sequence[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mlxforge.ui.units import NONE, model_name, number, one_line

    table = Table(box=None, pad_edge=False)
    for title in ("run", "objective", "status", "created", "model"):
        table.add_column(title, overflow="fold", no_wrap=title == "created")
    for title in ("steps", "loss", "bpb"):
        table.add_column(title, justify="right", no_wrap=True)
    if any(one.gate is not None for one in found):
        table.add_column("gate", no_wrap=True)
    verdicts = {True: "passed", False: "failed", None: ""}
    for one in found:
        words = (one.name, one.objective, "damaged" if one.damaged else one.status, one.created, model_name(one.model))
        figures = (f"{one.steps:,}" if one.steps is not None else NONE, number(one.loss), number(one.bpb))
        cells = [Text(one_line(word)) for word in (*words, *figures, verdicts[one.gate])]
        table.add_row(*cells[: len(table.columns)], style="yellow" if one.damaged else "")
    # A pipe has no width: lines stay whole there, for grep and awk.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for one in found:
        if one.damaged:
            click.echo(f"{one.path}: {one.damaged}", err=True)


list = list_command  # noqa: A001
