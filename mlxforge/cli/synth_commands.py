"""``mlxforge synth commands``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.shaping import FORCE, JSON, Number, show_json, show_next, some

if TYPE_CHECKING:
    from mlxforge.knowledge.providers import Provider

ABOVE = Number(0, min_open=True)
SHARE = Number(0, 1, max_open=True)


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
@click.option("--provider", metavar="NAME", help="Have a model put requests into other words: mlx (in this process) or openai.")
@click.option(
    "-m", "--model", metavar="MODEL", help="mlx: 'tiny', a folder, a hub id, run:NAME. openai: its name on the server."
)
@click.option("--url", metavar="URL", help="Of an OpenAI-compatible server. [default: $OPENAI_BASE_URL; key: $OPENAI_API_KEY]")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests answered at a time.")
@click.option("--timeout", type=ABOVE, default=120.0, show_default=True, metavar="SECONDS", help="For one reply of a server.")
@click.option("--price-in", type=ABOVE, metavar="USD", help="Price of a million tokens of prompt.")
@click.option("--price-out", type=ABOVE, metavar="USD", help="Price of a million tokens of answer.")
@click.option("--max-cost", type=ABOVE, metavar="USD", help="Ceiling of this run; needs the prices.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder that holds the runs."
)
@FORCE
@JSON
def commands(
    schema: Path | None,
    output: Path,
    from_click: str | None,
    shares: tuple[str, ...],
    thresholds: tuple[str, ...],
    rows: int,
    seed: int,
    valid: float,
    test: float,
    force: bool,
    as_json: bool,
    **reached: Any,
) -> None:
    """Rows that turn plain requests into a program's commands.

    \b
    mlxforge synth commands schema.yaml -o data/mytool/ --rows 5000
    mlxforge synth commands --from-click mlxforge.cli.main:cli -o data/forge/
    mlxforge synth commands sample:commands/mlxforge.yaml -o data/forge/ --share typo=30

    A grammar makes requests in many wordings, and for each the one right answer: a command to run or to confirm, or a question.
    Every answer is held against the schema. With --provider a model rewords clear requests; a wording that loses a value is
    refused, and replies are kept until the folder is written. README.md beside the rows says what an answer means.
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
            rows=rows,
            seed=seed,
            valid=valid,
            test=test,
            asked=_provider(**reached),
            force=force,
            emit=emit,
        )
    if as_json:
        show_json(result)
        return
    show(result)


def _provider(provider: str | None, runs_dir: Path, model: str | None, url: str | None, **more: Any) -> Provider | None:
    """The provider that was asked for, ready."""
    if provider is None:
        if model or url:
            raise click.UsageError("--model and --url are for --provider")
        return None
    if more["max_cost"] and not (more["price_in"] and more["price_out"]):
        raise click.UsageError("--max-cost needs --price-in and --price-out")
    from mlxforge.knowledge import providers
    from mlxforge.knowledge.asked import ProviderSettings
    from mlxforge.runs.synth import opener

    given = {name: value for name, value in more.items() if value is not None}
    settings = ProviderSettings(model=model or "", url=url or "", opener=opener(runs_dir), **given)
    return providers.provider(provider, settings)


def show(result: dict[str, Any]) -> None:
    """What was written, in which shares, how different the rows are, and what to run now."""
    total = sum(result["rows"].values())
    for part, number in result["rows"].items():
        click.echo(f"wrote {result['files'][part]}: {some(number, 'row')} ({number / total:.1%})")
    cases = ", ".join(f"{name} {number / total:.1%}" for name, number in result["cases"].items())
    figures = result["diversity"]
    click.echo(f"cases: {cases}")
    click.echo(
        f"equal instructions {figures['equal']:.1%}, distinct-2 {figures['distinct_2']:.2f}, "
        f"{figures['templates']:,} templates, reordered {figures['reordered']:.0%}, "
        f"{figures['commands']} of {figures['commands_in_schema']} commands"
    )
    if result["reworded"] or result["refused"]:
        refused = "; ".join(f"{reason} {number:,}" for reason, number in result["refused"].items())
        click.echo(f"in other words: {some(result['reworded'], 'row')}; refused: {refused or 'none'}")
    files = result["files"]
    held = "".join(
        f" --{flag} {files[part]}" for flag, part in (("valid", "valid"), ("task", "test")) if result["rows"].get(part)
    )
    show_next([f"mlxforge data preview {files['train']}", f"mlxforge sft -c sft-command --data {files['train']}{held}"])
