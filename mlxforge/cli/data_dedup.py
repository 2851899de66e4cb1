"""``mlxforge data dedup``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlxforge.cli.shaping import FORCE, JSON, OUTPUT, SKIP_BAD, Number, show_json, show_next, some


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE...")
@OUTPUT
@click.option(
    "--near",
    type=Number(0, 1, min_open=True),
    metavar="SHARE",
    help="Drop near duplicates too: rows that have this share of their 5-character sequences in common, such as 0.8.",
)
@click.option(
    "--key",
    default="auto",
    show_default=True,
    metavar="auto|KEY",
    help="What is compared: what a model learns from a row (not its id, source or date), or the value of KEY.",
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="JSON lines: which row was dropped for which.")
@SKIP_BAD
@FORCE
@JSON
def dedup(paths: tuple[str, ...], output: Path, as_json: bool, **options: Any) -> None:
    """Drop rows that say what an earlier row says.

    \b
    mlxforge data dedup chats.jsonl more.jsonl -o clean.jsonl
    mlxforge data dedup chats.jsonl --near 0.8 --report dropped.jsonl -o clean.jsonl

    Equal rows are those whose texts are equal but for white space and the form of accents; case counts. Near duplicates are
    found by MinHash and dropped only where the true share of common sequences reaches --near; system prompts, tools, labels
    and rewards must be equal. The first row stays, as it stands. Memory grows with the rows that stay.
    """
    from mlxforge.runs import shape_data
    from mlxforge.ui.listen import listeners

    with listeners("json") as emit:
        result = shape_data.dedup(paths, output, emit=emit, **options)
    if as_json:
        show_json(result)
        return
    near = f", {result['near']:,} near" if options["near"] else ""
    click.echo(f"dropped of {some(result['rows'], 'row')}: {result['exact']:,} exact{near}")
    if result["report"]:
        click.echo(f"wrote {result['report']}: which was dropped for which")
    click.echo(f"wrote {result['output']}: {some(result['kept'], 'row')}")
    show_next([f"mlxforge data check {result['output']}", f"mlxforge data split {result['output']} -o DIR"])
