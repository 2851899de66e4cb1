"""``mlxforge runs list``, and how lineage is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.runs import FOLDER, JSON

if TYPE_CHECKING:
    from rich.table import Table

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
    from mlxforge.ui.console import console
    from mlxforge.ui.lineage import pictures

    out = console()
    for picture in pictures(tree, mark):
        out.print(picture)


# What a narrow terminal goes without, the first one first.
SPARED = ("created", "model", "objective", "bpb", "steps", "gate", "loss", "status")


def _table(found: Sequence[Any]) -> None:
    from mlxforge.ui.console import console

    out = console()
    spared = () if any(one.gate is not None for one in found) else ("gate",)
    tables = [_columns(found, (*spared, *SPARED[:number])) for number in range(len(SPARED) + 1)]
    wide = out.options.update(max_width=1000)
    fitting = (table for table in tables if out.measure(table, options=wide).maximum <= out.width)
    out.print(next(fitting, tables[-1]))
    for one in found:
        if one.damaged:
            click.echo(f"{one.path}: {one.damaged}", err=True)


def _columns(found: Sequence[Any], spared: Sequence[str]) -> Table:
    """The table of runs without some of its columns."""
    from rich.table import Table
    from rich.text import Text

    from mlxforge.ui.units import NONE, model_name, number, one_line

    table = Table(box=None, pad_edge=False)
    verdicts = {True: "passed", False: "failed", None: ""}
    rows = [
        {
            "run": one.name,
            "objective": one.objective,
            "status": "damaged" if one.damaged else one.status,
            "created": one.created,
            "model": model_name(one.model),
            "steps": f"{one.steps:,}" if one.steps is not None else NONE,
            "loss": number(one.loss),
            "bpb": number(one.bpb),
            "gate": verdicts[one.gate],
        }
        for one in found
    ]
    titles = [title for title in rows[0] if title not in spared]
    for title in titles:
        right = title in ("steps", "loss", "bpb")
        table.add_column(title, overflow="fold", justify="right" if right else "left")
    for one, row in zip(found, rows, strict=True):
        table.add_row(*(Text(one_line(row[title])) for title in titles), style="yellow" if one.damaged else "")
    return table


list = list_command  # noqa: A001
