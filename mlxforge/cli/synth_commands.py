"""``mlxforge synth commands``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlxforge.cli.shaping import FORCE, JSON, show_json, show_next, some

SHARE = click.FloatRange(0, 1, max_open=True)


@click.command()
@click.argument("schema", required=False, type=click.Path(path_type=Path), metavar="[SCHEMA.yaml]")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the rows and their format.",
)
@click.option("--rows", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="Rows in all.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same bytes.")
@click.option(
    "--from-click",
    metavar="MODULE:COMMAND",
    help="Take the schema from a Click program, which is imported; phrases and values of SCHEMA.yaml are kept.",
)
@click.option(
    "--share",
    "shares",
    multiple=True,
    metavar="CASE=PART",
    help="Parts of the cases. [default: plain=40 context=20 clarification=10 incomplete=10 off_topic=10 typo=10]",
)
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    metavar="ACTION=CONFIDENCE",
    help="From which confidence on an answer is run, confirmed or suggested. [default: run=.9 confirm=.7 suggest=.4]",
)
@click.option("--valid", type=SHARE, default=0.1, show_default=True, help="Share of the rows for validation; 0 for none.")
@click.option("--test", type=SHARE, default=0.1, show_default=True, help="Share of the rows for the last test; 0 for none.")
@FORCE
@JSON
def commands(
    schema: Path | None,
    output: Path,
    from_click: str | None,
    shares: tuple[str, ...],
    thresholds: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Rows that turn plain requests into a program's commands.

    \b
    mlxforge synth commands schema.yaml -o data/mytool/ --rows 5000
    mlxforge synth commands --from-click mlxforge.cli.main:cli -o data/forge/
    mlxforge synth commands sample:commands/mlxforge.yaml -o data/forge/ --share typo=30

    A grammar makes requests in many wordings, and for each the one right answer: a command to run or to confirm, or a question.
    Every answer is held against the schema. README.md beside the rows says what an answer means.
    """
    from mlxforge.runs import synth_commands
    from mlxforge.runs.text import expand
    from mlxforge.ui.listen import listeners

    with listeners("json") as emit:
        found = synth_commands.schema_of(Path(expand(str(schema))) if schema else None, from_click, emit)
        result = synth_commands.synth_commands(
            found,
            output,
            shares=synth_commands.shares_of(shares),
            thresholds=synth_commands.thresholds_of(thresholds),
            emit=emit,
            **options,
        )
    if as_json:
        show_json(result)
        return
    show(result)


def show(result: dict[str, Any]) -> None:
    """What was written, in which shares, how different the rows are, and what to run now."""
    total = sum(result["rows"].values())
    for part, number in result["rows"].items():
        click.echo(f"wrote {result['files'][part]}: {some(number, 'row')}")
    cases = ", ".join(f"{name} {number / total:.1%}" for name, number in result["cases"].items())
    figures = result["diversity"]
    click.echo(f"cases: {cases}")
    click.echo(
        f"equal instructions {figures['equal']:.1%}, distinct-2 {figures['distinct_2']:.2f}, "
        f"{figures['templates']:,} templates, reordered {figures['reordered']:.0%}, "
        f"{figures['commands']} of {figures['commands_in_schema']} commands"
    )
    files = result["files"]
    held = "".join(f" --{flag} {files[part]}" for flag, part in (("valid", "valid"), ("task", "test")) if part in files)
    show_next([f"mlxforge data preview {files['train']}", f"mlxforge sft -c sft-command --data {files['train']}{held}"])
