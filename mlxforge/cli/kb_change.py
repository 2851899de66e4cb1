"""``mlxforge kb edit``, ``drop`` and ``export``: they write."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlxforge.cli.kb import AS_JSON, STORE, reference
from mlxforge.cli.shaping import FORCE, edited, show_json, show_next, some


@click.command()
@STORE
@click.argument("chunk", metavar="CHUNK")
@click.option("--text", help="The new text; '-' reads it from stdin. [default: opens $EDITOR]")
@click.option("--revert", is_flag=True, help="Bring the chunk's own text back.")
@click.option("-m", "--model", metavar="MODEL", help="Model whose tokenizer counts. [default: the one of the knowledge base]")
@AS_JSON
def edit(store: Path, chunk: str, text: str | None, revert: bool, model: str | None, as_json: bool) -> None:
    """Change a chunk's text: training, search and synthesis read the edit, the original stays beside it.

    Without --text the chunk is opened in $EDITOR, or read from stdin where that is no terminal. The white space around the
    chunk stays as it is.

    \b
    mlxforge kb edit kb.sqlite 12:3
    mlxforge kb edit kb.sqlite 12:3 --text 'The wheel turns at noon.'
    mlxforge kb edit kb.sqlite 12:3 --revert
    """
    from mlxforge.runs import kb

    if revert and text is not None:
        raise click.UsageError("--revert and --text exclude each other")
    new = None if revert else _new_text(store, chunk, text)
    result = kb.edit(store, chunk, new, model)
    if as_json:
        show_json(result)
    elif not result["changed"]:
        click.echo(f"{reference(result)}: unchanged")
    else:
        what = "edited" if result["edited"] else "as it was"
        click.echo(f"{reference(result)}: {what}, {some(result['tokens'], 'token')}")


def _new_text(store: Path, chunk: str, text: str | None) -> str:
    from mlxforge.core.errors import DataError
    from mlxforge.runs import kb

    if text == "-" or (text is None and not sys.stdin.isatty()):
        try:
            return sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 at byte {error.start}", where="stdin") from None
    if text is not None:
        return text
    page = kb.show(store, chunk)
    if "chunk_list" in page:
        return ""  # a whole document: refused by edit
    shown = page["text"] or page["original"]
    changed = edited(shown, ".txt")
    return page["text"] or shown if changed is None else changed


@click.command()
@STORE
@click.argument("names", nargs=-1, required=True, metavar="DOCUMENT|CHUNK...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@AS_JSON
def drop(store: Path, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Take documents or chunks out.

    A document goes for good, with its edits; the next 'mlxforge ingest' of its folder adds it again. A chunk is taken out of
    force: 'mlxforge kb edit KB CHUNK --revert' brings it back.
    """
    from mlxforge.runs import kb
    from mlxforge.ui.units import one_line

    plan = kb.drop_plan(store, names)
    for one in plan:
        what = f"chunk {one['index']} of {one['path']}" if one["index"] is not None else one["path"]
        holds = some(one["chunks"], "chunk") + (f", {some(one['edits'], 'edit')}" if one["edits"] else "")
        click.echo(f"{one['name']}  {one_line(what)}" + (f" ({holds})" if one["index"] is None else ""), err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("drop asks before it drops, and nobody can answer here: give --yes")
        click.confirm(f"drop {'this' if len(plan) == 1 else f'these {len(plan)}'}?", abort=True, err=True)
    result = kb.drop(store, plan)
    if as_json:
        show_json(result)
        return
    parts = [some(result[kind], kind[:-1]) for kind in ("documents", "chunks") if result[kind]]
    click.echo(f"dropped {' and '.join(parts)}")


@click.command()
@STORE
@click.argument("filters", nargs=-1, metavar="[FILTER]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="File to write. [default: stdout]")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["chunks", "documents", "text"]),
    help="JSON lines of chunks or of documents, or their text. [default: text for .txt and .md, else chunks]",
)
@click.option("--passages", is_flag=True, help="Each chunk's text begins with its overlap, as synthesis reads it.")
@FORCE
@AS_JSON
def export(
    store: Path, filters: tuple[str, ...], output: Path | None, kind: str | None, passages: bool, force: bool, as_json: bool
) -> None:
    """Write what is in force, edits included, of the documents whose path or title has every FILTER in it.

    \b
    mlxforge kb export kb.sqlite -o chunks.jsonl
    mlxforge kb export kb.sqlite handbook -o handbook.txt
    mlxforge kb export kb.sqlite --as documents | head -1
    """
    from mlxforge.runs import kb

    written = kb.kind_of(output, kind)
    if passages and written != "chunks":
        raise click.UsageError("--passages are chunks: with --as chunks")
    if output is None:
        if as_json:
            raise click.UsageError("--json tells of a file that was written: name one with -o")
        for part in kb.exported(store, written, filters, passages=passages):
            sys.stdout.buffer.write(part)
        return
    result = kb.export(store, output, written, filters, passages=passages, force=force)
    if as_json:
        show_json(result)
        return
    what = "chunk" if written == "chunks" else "document"
    click.echo(f"wrote {output}: {some(result['rows'], what)}")
    show_next([f"mlxforge data check {output}"])
