"""``mlxforge kb list``, ``show``, ``search`` and ``stats``: they read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mlxforge.cli.kb import AS_JSON, STORE, reference
from mlxforge.cli.shaping import coloured, heading, show_json, some

SHOWN = 100  # rows of a table, where the user asks for no other number
BAR, FIGURES = 40, 19  # characters of the longest bar, and of what stands before it
WIDEST = 60  # characters that a column keeps before the last one has given up its own
LETTERS = 200  # of a chunk in a line
LIMIT = click.option(
    "--limit", type=click.IntRange(0), default=SHOWN, show_default=True, help="Lines of the table at most; 0 shows all."
)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), dim: Sequence[bool] = ()) -> None:
    """A table as wide as the terminal, the last column cut; figures stand to the right."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    from mlxforge.ui.console import console
    from mlxforge.ui.units import one_line

    kept = [number for number in range(len(titles)) if any(row[number] for row in rows)]  # a column that is empty says nothing
    titles, rows = [titles[number] for number in kept], [[one_line(row[number]) for number in kept] for row in rows]
    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        last = number == len(titles) - 1
        widest = max(cell_len(title), *(cell_len(row[number]) for row in rows))
        table.add_column(
            title,
            justify="right" if title in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=1 if last else min(widest, WIDEST),
        )
    for number, row in enumerate(rows):
        table.add_row(*(Text(word) for word in row), style="bright_black" if dim and dim[number] else "")
    console().print(table)


@click.command("list")
@STORE
@click.argument("filters", nargs=-1, metavar="[FILTER]...")
@click.option("--type", "kind", metavar="TYPE", help="Only documents of this type, such as pdf.")
@LIMIT
@AS_JSON
def list_command(store: Path, filters: tuple[str, ...], kind: str | None, limit: int, as_json: bool) -> None:
    """List the documents whose path or title has every FILTER in it; those whose file is gone stand apart.

    \b
    mlxforge kb list kb.sqlite
    mlxforge kb list kb.sqlite handbook --type pdf
    """
    from mlxforge.runs.kb import list_documents

    found = list_documents(store, filters, kind)
    if as_json:
        show_json({"documents": found})
        return
    force = [row for row in found if row["removed"] is None]
    gone = found[len(force) :]
    if not found:
        click.echo(f"no documents in {store}" if not (filters or kind) else f"no document of {store} fits")
    _documents(force, limit)
    if gone:
        click.echo(("\n" if force else "") + heading(f"removed: {some(len(gone), 'document')} whose file is gone"))
        _documents(gone, limit)


def _documents(found: Sequence[dict[str, Any]], limit: int) -> None:
    if not found:
        return
    shown = found[: limit or None]
    rows = [
        (
            *(str(row["id"]), row["type"], row["language"] or "–"),
            *(f"{row['chunks']:,}", f"{row['tokens']:,}", str(row["edits"] or "")),
            *(row["added"][:10], row["path"], row["title"]),
        )
        for row in shown
    ]
    _table(
        ("id", "type", "lang", "chunks", "tokens", "edits", "added", "path", "title"), rows, ("id", "chunks", "tokens", "edits")
    )
    if len(found) > len(shown):
        click.echo(f"... and {len(found) - len(shown):,} more: --limit 0 shows all")


@click.command()
@STORE
@click.argument("name", metavar="DOCUMENT|CHUNK")
@LIMIT
@AS_JSON
def show(store: Path, name: str, limit: int, as_json: bool) -> None:
    """Show a document with its chunks, or a chunk with its text; of an edited chunk, the original beside the edit.

    \b
    mlxforge kb show kb.sqlite 12
    mlxforge kb show kb.sqlite handbook.pdf:3
    """
    from mlxforge.runs import kb

    page = kb.show(store, name)
    if as_json:
        show_json(page)
    elif "chunk_list" in page:
        _document(page, limit)
    else:
        _chunk(page)


def _lines(pairs: Sequence[tuple[str, Any]]) -> None:
    from mlxforge.ui.units import one_line

    for name, value in pairs:
        if value not in (None, "", {}):
            click.echo(f"  {name:<9} {one_line(str(value))}")


def _document(page: dict[str, Any], limit: int) -> None:
    from mlxforge.ui.units import one_line, size

    click.echo(heading(one_line(f"{page['id']}  {page['title']}")))
    cleaned = ", ".join(f"{what}: {count:,}" if isinstance(count, int) else what for what, count in page["cleaned"].items())
    facts = f"{some(page['chunks'], 'chunk')}, {some(page['tokens'], 'token')}, {size(page['bytes'])}"
    _lines(
        [
            ("path", page["path"]),
            ("type", page["type"]),
            ("language", page["language"]),
            ("added", page["added"]),
            ("removed", page["removed"] and f"{page['removed']}: the file is gone, its chunks are out of force"),
            ("holds", facts + (f", {some(page['edits'], 'edit')}" if page["edits"] else "")),
            ("cleaned", cleaned),
        ]
    )
    click.echo()
    shown = page["chunk_list"][: limit or None]
    rows = [
        (
            reference(one),
            str(one["page"] or ""),
            f"{one['tokens']:,}",
            _mark(one),
            one["heading"],
            " ".join(one["text"][:LETTERS].split()),
        )
        for one in shown
    ]
    titles = ("chunk", "page", "tokens", "", "heading", "text")
    _table(titles, rows, ("page", "tokens"), [_mark(one) == "dropped" for one in shown])
    if len(page["chunk_list"]) > len(shown):
        click.echo(f"... and {len(page['chunk_list']) - len(shown):,} more: --limit 0 shows all")
    for lost in page["orphans"]:
        click.echo("\n" + heading(f"an edit of {lost['edited']} whose chunk is gone, since the file changed there"))
        click.echo(_safe(lost["text"]))


def _mark(chunk: dict[str, Any]) -> str:
    return "dropped" if chunk["edited"] and not chunk["text"] else "edited" if chunk["edited"] else ""


def _chunk(chunk: dict[str, Any]) -> None:
    from mlxforge.ui.units import one_line

    click.echo(heading(one_line(f"{reference(chunk)}  {chunk['title']}")))
    _lines(
        [
            ("path", chunk["path"]),
            ("heading", chunk["heading"]),
            ("page", chunk["page"]),
            ("span", f"characters {chunk['start']:,} to {chunk['end']:,} of the cleaned document"),
            ("tokens", f"{chunk['tokens']:,}" + (", the overlap included" if chunk["overlapping"] else "")),
            ("removed", chunk["removed"] and "the document's file is gone, its chunks are out of force"),
        ]
    )
    if chunk["overlapping"]:
        click.echo("\n" + heading("overlap with the chunk before"))
        click.echo(_safe(chunk["overlapping"]))
    if chunk["edited"]:
        click.echo("\n" + heading(f"{'dropped' if not chunk['text'] else 'edit'} of {chunk['edited_at']}"))
        click.echo(_safe(chunk["text"]) if chunk["text"] else "out of force: kb edit --revert brings it back")
    click.echo("\n" + heading("original" if chunk["edited"] else "text"))
    click.echo(_safe(chunk["original"]))


def _safe(text: str) -> str:
    """A text for the terminal: its lines, and no control character."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text).strip("\n")


@click.command()
@STORE
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@click.option("--limit", type=click.IntRange(1), default=10, show_default=True, help="Chunks at most.")
@click.option("--any", "any_word", is_flag=True, help="One of the words is enough.")
@click.option("--raw", is_flag=True, help="The words are an FTS5 expression: 'text: mill NEAR wheel NOT sail'.")
@AS_JSON
def search(store: Path, words: tuple[str, ...], limit: int, any_word: bool, raw: bool, as_json: bool) -> None:
    """Find the chunks that have every WORD, the best first (BM25; a higher score is better).

    Words are found in all their English forms (turn, turns, turning), in any case, with or without accents. A phrase stands in
    "double quotes", a word's beginning before a star. Beside other words, those such as 'the' and 'of' are passed over. Where
    very many chunks match, some of them are ranked: it is said how many.

    \b
    mlxforge kb search kb.sqlite mill wheel
    mlxforge kb search kb.sqlite '"water wheel" mainten*'
    """
    from mlxforge.runs import kb

    if raw and any_word:
        raise click.UsageError("--any and --raw exclude each other: write OR into the expression")
    found = kb.search(store, " ".join(words), limit=limit, any_word=any_word, raw=raw)
    if as_json:
        hits = [{**hit, "snippet": kb.marked(hit["snippet"], "**", "**")} for hit in found.hits]
        show_json({"hits": hits, "matches": found.matches, "ranked": found.ranked})
        return
    for hit in found.hits:
        _hit(hit)
    if found.ranked < found.matches:
        click.echo(f"{found.matches:,} chunks match: {found.ranked:,} of them were ranked. A rarer word says more.")
    if not found.hits:
        more = "" if any_word or raw or len(words) == 1 else "; --any finds chunks with one of the words"
        click.echo(f"nothing found{more}")


def _hit(hit: dict[str, Any]) -> None:
    from mlxforge.runs.kb import MARKS, marked
    from mlxforge.ui.units import one_line

    where = [hit["path"], f"page {hit['page']}" if hit["page"] else "", hit["heading"]]
    click.echo(f"{heading(reference(hit))}  {hit['score']:.2f}  {one_line(' · '.join(part for part in where if part))}")
    begin, end = ("\x1b[1;33m", "\x1b[0m") if coloured() else ("", "")
    plain = "".join(letter if letter.isprintable() or letter in MARKS else " " for letter in " ".join(hit["snippet"].split()))
    click.echo(f"    {marked(plain, begin, end)}")


@click.command()
@STORE
@AS_JSON
def stats(store: Path, as_json: bool) -> None:
    """Count documents, chunks and tokens, by type and language, and plot how long the chunks are."""
    from mlxforge.runs import kb
    from mlxforge.ui.units import size

    page = kb.stats(store)
    if as_json:
        show_json(page)
        return
    click.echo(heading(str(store)) + f"  {size(page['file_bytes'])}")
    facts = [some(page["documents"], "document"), some(page["chunks"], "chunk"), some(page["tokens"], "token")]
    _lines(
        [
            ("holds", ", ".join(facts) + f", {size(page['bytes'])} of files"),
            ("tokenizer", page["model"]),
            ("removed", some(page["removed"], "document") + " whose file is gone" if page["removed"] else None),
            ("edits", page["edits"] or None),
            ("orphans", some(page["orphans"], "edit") + " whose chunk is gone: kb show DOCUMENT" if page["orphans"] else None),
            ("jobs", ", ".join(f"{kind} {number:,}" for kind, number in page["jobs"].items())),
            ("rows", ", ".join(f"{number:,} {verdict}" for verdict, number in page["rows"].items())),
        ]
    )
    if not page["chunks"]:
        return
    for key in ("type", "language"):
        click.echo()
        titles = (key, "documents", "chunks", "tokens", "size")
        rows = [
            (row[key] or "–", f"{row['documents']:,}", f"{row['chunks']:,}", f"{row['tokens']:,}", size(row["bytes"]))
            for row in page[f"{key}s"]
        ]
        _table(titles, rows, titles[1:])
    _lengths(page["tokens_per_chunk"])


def _lengths(lengths: dict[str, Any]) -> None:
    figures = (
        f"mean {lengths['mean']:,.0f}, median {lengths['median']:,}, 95 % up to {lengths['p95']:,}, longest {lengths['max']:,}"
    )
    click.echo("\n" + heading("tokens a chunk") + f"  {figures}")
    most = max(one["chunks"] for one in lengths["histogram"])
    widest = max(1, min(BAR, shutil.get_terminal_size().columns - FIGURES))
    for one in lengths["histogram"]:
        bar = "▇" * max(round(widest * one["chunks"] / most), one["chunks"] > 0)
        click.echo(f"  ≤ {one['upto']:>6,} {one['chunks']:>8,} {bar}".rstrip())


# The name under which the group finds it.
list = list_command  # noqa: A001
