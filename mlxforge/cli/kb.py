"""``mlxforge kb``: look into a knowledge base, and change it by hand."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from mlxforge.cli.lazy import Commands, Table

COMMANDS: Table = {
    "list": ("mlxforge.cli.kb_look", "List the documents."),
    "show": ("mlxforge.cli.kb_look", "Show a document with its chunks, or a chunk with its text."),
    "search": ("mlxforge.cli.kb_look", "Find chunks by words, the best first."),
    "edit": ("mlxforge.cli.kb_change", "Change a chunk's text; the original stays beside it."),
    "drop": ("mlxforge.cli.kb_change", "Take documents or chunks out."),
    "export": ("mlxforge.cli.kb_change", "Write chunks or documents as JSON lines or text."),
    "stats": ("mlxforge.cli.kb_look", "Count documents, chunks and tokens; plot the lengths of chunks."),
}
STORE = click.argument("store", type=click.Path(path_type=Path), metavar="KB")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Commands, table=COMMANDS)
def kb() -> None:
    """Look into a knowledge base, and change it by hand.

    KB is the file that 'mlxforge ingest' made. DOCUMENT is a document's id, its path, or the end of its path; CHUNK is
    DOCUMENT:INDEX, as 'kb search' and 'kb show' print it.
    """
    # Ended by SIGTERM as by Ctrl-C: a file that is half written goes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def reference(chunk: dict[str, Any]) -> str:
    """How a chunk is called on the command line: ``12:3``."""
    return f"{chunk['document']}:{chunk['index']}"
