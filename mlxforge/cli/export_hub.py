"""``mlxforge export hub``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.shaping import JSON, heading, show_json, some
from mlxforge.cli.subject import subject

if TYPE_CHECKING:
    from mlxforge.runs.opening import Base

KINDS = ("adapter", "fused", "gguf")  # as runs.export_hub makes them


@click.command()
@subject
@click.option("--repo", required=True, metavar="ID", help="Repository to make: OWNER/NAME, or NAME for one of your own.")
@click.option("--private", is_flag=True, help="Only you and your organisation can see it.")
@click.option("--what", type=click.Choice(KINDS), default="adapter", show_default=True, help="What is uploaded.")
@click.option("--quant", "quants", multiple=True, metavar="QUANT", help="With --what gguf: q8_0 unless said; may be repeated.")
@click.option("--base", "named", metavar="NAME", help="With --what adapter: the base as PEFT is to load it.")
@click.option("--dry-run", is_flag=True, help="Show the files and the card; upload nothing.")
@click.option("--force", is_flag=True, help="Take a repository that is there already.")
@JSON
def hub(
    base: Callable[[], Base],
    repo: str,
    private: bool,
    what: str,
    quants: tuple[str, ...],
    named: str | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Upload an adapter, a fused model or GGUF files to the Hugging Face hub, with a model card.

    \b
    mlxforge export hub last --repo me/answers --dry-run
    mlxforge export hub last --repo me/answers --private
    mlxforge export hub last --repo me/answers-gguf --what gguf --quant q4_k_m --quant q8_0

    RUN is a name, NAME@STEP, a path, or 'last'. The card says how the run was trained and how it scored; folders of this disk
    are not in it. The token comes from HF_TOKEN or 'hf auth login'. An adapter is uploaded as PEFT reads it; a GGUF file only
    when llama.cpp has verified it.
    """
    from mlxforge.core.errors import ConfigError
    from mlxforge.core.events import Event, Noted, Warned
    from mlxforge.runs.export_hub import export_hub
    from mlxforge.ui.talk import status

    for option, given, kind in (("--quant", quants, "gguf"), ("--base", named, "adapter")):
        if given and what != kind:
            raise ConfigError(f"goes with --what {kind}", where=option, fix="leave it out")

    def tell(event: Event) -> None:
        if isinstance(event, (Noted, Warned)):
            click.echo(event.message, err=True)

    options: dict[str, Any] = {
        "what": what,
        "named": named,
        "private": private,
        "dry_run": dry_run,
        "force": force,
        "emit": tell,
    }
    with status(f"making the files of {repo}" if dry_run else f"uploading to {repo}"):
        result = export_hub(base(), repo, quants=quants or ("q8_0",), **options)
    if as_json:
        show_json(result)
        return
    show(result)


def show(result: dict[str, Any]) -> None:
    """The files with their sizes; of a dry run the card too."""
    width = max(len(file["path"]) for file in result["files"])
    for file in result["files"]:
        click.echo(f"{file['path']:<{width}}  {file['bytes']:>15,}")
    size = f"{some(len(result['files']), 'file')}, {result['bytes'] / 1e6:,.1f} MB"
    if not result["dry_run"]:
        click.echo(f"uploaded {size}: {result['url']}")
        return
    seen = "private" if result["private"] else "public"
    click.echo(f"{size} would go to {result['repo']} ({seen}); nothing was uploaded\n")
    click.echo(heading("README.md"))
    click.echo(result["card"])
