"""``mlxforge data``: look at training data before it is trained, and bring it into shape."""

from __future__ import annotations

import signal

import click

from mlxforge.cli.lazy import Commands, Table

COMMANDS: Table = {
    "check": ("mlxforge.cli.data_check", "Check training data: format, bad rows, duplicates, lengths, methods."),
    "convert": ("mlxforge.cli.data_convert", "Write rows of any format as rows of another."),
    "preview": ("mlxforge.cli.data_preview", "Show rows as training sees them: which tokens are trained."),
    "extract": ("mlxforge.cli.data_extract", "Find conversations in markdown and text by who speaks."),
    "pairs": ("mlxforge.cli.data_pairs", "Make preference data: from samples, judges or scores."),
    "split": ("mlxforge.cli.data_split", "Split rows into training, validation and test sets by a hash."),
    "mix": ("mlxforge.cli.data_mix", "Mix conversations of several sources by ratio."),
    "dedup": ("mlxforge.cli.data_dedup", "Drop rows that say what an earlier row says."),
}


@click.group(cls=Commands, table=COMMANDS)
def data() -> None:
    """Check, preview, convert, split, mix and clean training data."""
    # Ended by SIGTERM as by Ctrl-C: a file that is half written goes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
