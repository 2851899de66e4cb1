"""``mlxforge data extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlxforge.cli.shaping import FORCE, JSON, OUTPUT, Number, show_json, show_next, some

SHOWN = 20  # files without a conversation told one by one


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--speakers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file of speaker patterns. [default: configs/speakers.yaml, which says how it is written]",
)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any key of the speakers file: --set 'user=[Ann:]'."
)
@OUTPUT
@click.option("--min-turns", type=click.IntRange(2), default=2, show_default=True, help="Turns a conversation has at least.")
@click.option("--min-chars", type=click.IntRange(0), default=0, show_default=True, help="Characters it has at least.")
@click.option("--max-chars", type=click.IntRange(1), help="Characters it has at most.")
@click.option(
    "--max-repetition",
    type=Number(0, 1),
    default=0.8,
    show_default=True,
    help="Largest share of its 10-character sequences that occurred in it before; prose has about 0.1, a loop nearly 1.",
)
@FORCE
@JSON
def extract(
    paths: tuple[str, ...],
    speakers: Path | None,
    assignments: tuple[str, ...],
    output: Path,
    force: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Find conversations in markdown and text by who speaks at the start of a line.

    \b
    mlxforge data extract chats/ -o chats.jsonl
    mlxforge data extract export.txt --set 'user=[Ann:]' --set 'assistant=[Bob:]' -o ann.jsonl
    mlxforge data extract notes/ --speakers my-speakers.yaml --min-turns 4 -o notes.jsonl

    Turns in a row of one speaker are joined. A conversation begins with the system or the user and ends with the assistant:
    what stands around it is left out and counted.
    """
    from mlxforge.core.errors import DataError
    from mlxforge.data.extract import Limits
    from mlxforge.runs import shape_data
    from mlxforge.ui.listen import listeners

    with listeners("json") as emit:
        result = shape_data.extract(
            paths, output, speakers=speakers, assignments=assignments, limits=Limits(**limits), force=force, emit=emit
        )
    if as_json:
        show_json(result)
    else:
        _show(result)
    if result["output"] is None:
        raise DataError(
            "no conversation found: nothing was written",
            where=", ".join(paths),
            fix="name the speakers: --speakers FILE, or --set 'user=[Ann:]' --set 'assistant=[Bob:]'",
        )


def _show(result: dict[str, Any]) -> None:
    without = [file for file in result["files"] if not file["conversations"]]
    for file in without[:SHOWN]:
        click.echo(f"{file['path']}: no conversation: {file['reason']}")
    if len(without) > SHOWN:
        click.echo(f"... and {some(len(without) - SHOWN, 'file')} more without a conversation")
    for name, count in result["dropped"].items():
        click.echo(f"left out: {some(count, 'conversation')} {name}")
    for name, count in result["trimmed"].items():
        click.echo(f"left out: {name}: {count:,}")
    if result["others"]:
        names = ", ".join(f"{name} {count:,}" for name, count in list(result["others"].items())[:10])
        click.echo(f"left out: turns of speakers without a role: {names}")
    if result["output"]:
        found = f"{some(result['conversations'], 'conversation')} with {some(result['turns'], 'turn')}"
        click.echo(f"wrote {result['output']}: {found} from {some(len(result['files']) - len(without), 'file')}")
        show_next([f"mlxforge data check {result['output']}", f"mlxforge data split {result['output']} --by source -o DIR"])
