"""From an answer back to the command line that it stands for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from mlxforge.knowledge.commands.schema import Argument, Command, Schema


def words(schema: Schema, answer: Mapping[str, Any]) -> list[str]:
    """The words behind the program's name: each level's options and flags, then its positional values, then the next name.

    The answer must be one that :func:`mlxforge.knowledge.commands.validate.problems` finds nothing wrong with.
    """
    command = schema.commands[answer["command"]]
    line: list[str] = []
    for level in range(len(command.path) + 1):
        line += command.path[level - 1 : level] if level else []
        line += _level(command, answer, level)
    return line


def command_line(schema: Schema, answer: Mapping[str, Any]) -> str:
    """The same as one line for a shell, quoted where it must be."""
    return shlex.join([schema.cli_name, *words(schema, answer)])


def _level(command: Command, answer: Mapping[str, Any], level: int) -> list[str]:
    given = answer["arguments"]
    mine = [argument for argument in command.arguments if argument.level == level and argument.name in given]
    options = [word for a in mine if a.option for item in _items(a, given[a.name]) for word in _option(a.option, item)]
    flags = [name for name in answer["flags"] if (flag := command.flag(name)) and flag.level == level]
    plain = [text for a in mine if not a.option for item in _items(a, given[a.name]) for text in texts(item)]
    # What begins with a dash and is no option needs the mark that ends the options.
    dashes = ["--"] if any(text.startswith("-") for text in plain) else []
    return [*options, *flags, *dashes, *plain]


def _items(argument: Argument, value: Any) -> list[Any]:
    return list(value) if argument.multiple else [value]


def _option(name: str, item: Any) -> list[str]:
    written = texts(item)
    if len(written) == 1 and name.startswith("--"):
        # One word: a value with a dash in front, or an empty one, is then never taken for something else.
        return [f"{name}={written[0]}"] if written[0][:1] in ("-", "") else [name, written[0]]
    return [name, *written]


def texts(item: Any) -> list[str]:
    """A value as it is typed; several for a list."""
    if isinstance(item, list):
        return [text for part in item for text in texts(part)]
    if isinstance(item, bool):
        return [str(item).lower()]
    return [repr(item) if isinstance(item, float) else str(item)]
