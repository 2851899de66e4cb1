"""``mlxforge data split``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlxforge.cli.shaping import FORCE, JSON, SKIP_BAD, Number, show_json, show_next, some

SHARE = Number(0, 1, max_open=True)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for train.jsonl, valid.jsonl and test.jsonl.",
)
@click.option("--valid", type=SHARE, default=0.05, show_default=True, help="Share of the groups for validation; 0 for none.")
@click.option("--test", type=SHARE, default=0.0, show_default=True, help="Share of the groups for the last test; 0 for none.")
@click.option(
    "--by",
    default="row",
    show_default=True,
    metavar="row|KEY",
    help="What stays together: equal rows, or all rows with one value of KEY ('source' leaves the line of file:line out).",
)
@SKIP_BAD
@FORCE
@JSON
def split(paths: tuple[str, ...], output: Path, as_json: bool, **options: Any) -> None:
    """Split rows into training, validation and test sets by a hash.

    \b
    mlxforge data split chats.jsonl -o chats/
    mlxforge data split facts.jsonl --valid 0.1 --test 0.1 --by source -o facts/

    A row goes where it goes whatever the other rows and their order: later rows change nothing for earlier ones. Shares are
    what to expect of many rows. Rows of JSON lines are written as they stand.
    """
    from mlxforge.cli.main import COMMANDS
    from mlxforge.runs import shape_data
    from mlxforge.ui.listen import listeners

    with listeners("json") as emit:
        result = shape_data.split(paths, output, emit=emit, **options)
    if as_json:
        show_json(result)
        return
    asked = {"valid": options["valid"], "test": options["test"]}
    total = sum(result["rows"].values())
    for part, number in result["rows"].items():
        wanted = f", asked {asked[part]:.1%}" if part in asked else ""
        click.echo(f"wrote {result['files'][part]}: {some(number, 'row')} ({number / total:.1%}{wanted})")
    if result["moved"]:
        click.echo("few rows: some were moved so that no set is empty where there are rows for it")
    held = f" --valid {result['files']['valid']}" if "valid" in result["files"] else ""
    # The first method that takes the rows and has a command.
    if verb := next((method for method in result["methods"] if method in COMMANDS), None):
        show_next([f"mlxforge {verb} --data {result['files']['train']}{held}"])
    else:
        show_next([f"mlxforge data check {result['files']['train']}"])
