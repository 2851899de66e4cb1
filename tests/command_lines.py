"""Lines of the command line, parsed as it would and not called."""

from __future__ import annotations

import shlex

import click

from mlxforge.cli.main import cli


def parses(line):
    """The words of a line that the command line takes; else a click.UsageError."""
    name, *words = shlex.split(line, comments=True)
    assert name.endswith("mlxforge")
    command, context = cli, click.Context(cli, info_name="mlxforge")
    while isinstance(command, click.Group):
        command = command.get_command(context, words[0])
        assert command is not None, line
        words = words[1:]
    command.make_context(command.name, list(words), parent=context)
    return shlex.split(line, comments=True)
