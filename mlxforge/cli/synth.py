"""``mlxforge synth``: training data made from documents and programs."""

from __future__ import annotations

import signal

import click

from mlxforge.cli.lazy import Commands, Table

COMMANDS: Table = {
    "qa": ("mlxforge.cli.synth_qa", "Questions and answers from a knowledge base, each held against its passage."),
    "pairs": ("mlxforge.cli.synth_pairs", "Preference pairs: a model's own answers against grounded ones."),
    "expand": ("mlxforge.cli.synth_expand", "Passages about a document's entities, for continued pre-training."),
    "commands": ("mlxforge.cli.synth_commands", "Plain requests, and the command of a program that each means."),
    "review": ("mlxforge.cli.synth_review", "Look at made rows one by one: accept, edit, reject."),
    "prompts": ("mlxforge.cli.synth_prompts", "Copy the shipped prompts, to change them."),
}


@click.group(cls=Commands, table=COMMANDS)
def synth() -> None:
    """Make training data: questions and answers, pairs, passages, commands."""
    # Ended by SIGTERM as by Ctrl-C: what is made so far is kept and written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
