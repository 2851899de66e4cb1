"""``mlxforge ingest``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from mlxforge.cli.shaping import JSON, show_json, show_next, some

SHOWN = 10  # paths listed of a kind


@click.command()
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option("--into", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The knowledge base; made if new.")
@click.option("-m", "--model", metavar="MODEL", help="Whose tokenizer counts: tiny, a folder or a hub id. [default: tiny]")
@click.option(
    "--size", type=click.IntRange(1), metavar="TOKENS", help="Tokens of a chunk at most, overlap included. [default: 500]"
)
@click.option(
    "--overlap", type=click.IntRange(0), metavar="TOKENS", help="Tokens that a chunk repeats of the one before. [default: 50]"
)
@click.option("--clean/--no-clean", "cleaning", default=None, help="All cleaning steps, or none. [default: clean]")
@click.option(
    "--keep",
    metavar="STEP,...",
    help="Cleaning steps to leave out: control, navigation, headers, page-numbers, leaders, ligatures, hyphens, spaces, nfc.",
)
@click.option("--from-chroma", type=click.Path(path_type=Path), metavar="DIR", help="A Chroma store whose chunks are imported.")
@click.option("--collection", metavar="NAME", help="The collection of it.")
@JSON
def ingest(
    paths: tuple[str, ...],
    into: Path,
    model: str | None,
    size: int | None,
    overlap: int | None,
    cleaning: bool | None,
    keep: str | None,
    from_chroma: Path | None,
    collection: str | None,
    as_json: bool,
) -> None:
    """Read documents into a knowledge base: one SQLite file that training and synthesis read.

    \b
    mlxforge ingest handbook/ --into kb.sqlite
    mlxforge ingest manual.pdf notes.docx --into kb.sqlite --model Qwen/Qwen3-0.6B --size 400
    mlxforge ingest scans/ --into kb.sqlite --keep headers,hyphens
    mlxforge ingest --from-chroma chroma/ --collection notes --into kb.sqlite

    PDF, DOCX, PPTX, XLSX, HTML, EPUB, Markdown, text, reStructuredText, CSV, JSON, JSONL and source code; folders with all
    below them, hidden files left out. Run it again after a change: unchanged files are skipped, changed ones replaced (your
    edits stay where the text stays), files that are gone from a folder are marked removed. It can be stopped at any time.
    Settings that are not given are those the knowledge base was made with.
    """
    from mlxforge.core.errors import ConfigError, DataError
    from mlxforge.runs.ingest import IngestSettings
    from mlxforge.runs.ingest import ingest as run
    from mlxforge.ui.bars import bars

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers end, a new store without documents goes
    if not paths and from_chroma is None:
        raise ConfigError(
            "nothing to read is named", where="command line", fix="PATH..., or --from-chroma DIR --collection NAME"
        )
    if (from_chroma is None) != (collection is None):
        raise ConfigError("--from-chroma and --collection go together", where="command line", fix="give both")
    settings = IngestSettings(model, size, overlap, _kept(cleaning, keep))
    with bars() as emit:
        result = run(paths, into, settings, chroma=from_chroma, collection=collection or "", emit=emit)
    if as_json:
        show_json(result)
    else:
        _show(result)
    states = result["documents"]
    if states["failed"] and states["failed"] == sum(states.values()) - states["removed"]:
        raise DataError(f"nothing could be read: {some(states['failed'], 'file')} failed", where=", ".join(paths))


def _kept(cleaning: bool | None, keep: str | None) -> tuple[str, ...] | None:
    """The steps that are turned off; None where the command line does not say."""
    from mlxforge.core.errors import ConfigError
    from mlxforge.knowledge.clean import STEPS

    if cleaning is not None and keep is not None:
        raise ConfigError("--keep and --clean or --no-clean are two answers", where="command line", fix="give one")
    if cleaning is not None:
        return () if cleaning else tuple(STEPS)
    return None if keep is None else tuple(name for word in keep.split(",") if (name := word.strip()))


def _show(result: dict[str, Any]) -> None:
    for path in result["removed"][:SHOWN]:
        click.echo(f"removed: {path}")
    if len(result["removed"]) > SHOWN:
        click.echo(f"... and {some(len(result['removed']) - SHOWN, 'document')} more that are gone")
    if result["cleaned"]:
        click.echo("cleaned: " + ", ".join(f"{name} {count:,}" for name, count in result["cleaned"].items()))
    if result["skipped"]:
        click.echo("not read in the folders: " + ", ".join(f"{count:,} {kind}" for kind, count in result["skipped"].items()))
    if result["orphans"]:
        click.echo(f"{some(result['orphans'], 'edit')} lost their chunk, since its text changed: kept in the table orphans")
    states = ", ".join(f"{count:,} {name}" for name, count in result["documents"].items() if count)
    click.echo(f"documents: {states}")
    total = result["total"]
    found = f"{some(total['documents'], 'document')} in {some(total['chunks'], 'chunk')} with {some(total['tokens'], 'token')}"
    click.echo(f"{result['store']}: {found}")
    if total["chunks"]:
        show_next([f"mlxforge kb list {result['store']}", f"mlxforge synth qa {result['store']} -o sft.jsonl"])
