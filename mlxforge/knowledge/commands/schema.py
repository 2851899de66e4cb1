"""What a command line program understands: commands, arguments with their types, flags. Pure data, and how a value is checked.

A schema is read from YAML by :mod:`mlxforge.knowledge.commands.reader`, or made of a Click program by
:mod:`mlxforge.knowledge.commands.from_click`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# What a user may write for a type -> the name that is used.
TYPES = {
    "text": "text",
    "string": "text",
    "str": "text",
    "integer": "integer",
    "int": "integer",
    "number": "number",
    "float": "number",
    "boolean": "boolean",
    "bool": "boolean",
    "path": "path",
    "file": "file",
    "folder": "folder",
    "dir": "folder",
    "directory": "folder",
}
JSON_TYPES = {"integer": "integer", "number": "number", "boolean": "boolean"}  # all others are strings


@dataclass(frozen=True)
class Kind:
    """What one value may be. Bounds hold their own value unless they are open."""

    type: str = "text"
    enum: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    min_open: bool = False
    max_open: bool = False

    def problem(self, value: Any) -> str:
        """What is wrong with a value, or an empty text."""
        if self.enum:
            known = any(value == item and type(value) is type(item) for item in self.enum)
            return "" if known else f"{value!r} is not one of {', '.join(map(str, self.enum))}"
        if not _typed(value, self.type):
            return f"{value!r} is no {self.type}"
        if self.type in ("integer", "number") and not self._inside(value):
            return f"{value!r} is not in {self.range}"
        return ""

    def _inside(self, value: float) -> bool:
        low = self.minimum is None or (value > self.minimum if self.min_open else value >= self.minimum)
        high = self.maximum is None or (value < self.maximum if self.max_open else value <= self.maximum)
        return low and high

    @property
    def empty(self) -> bool:
        """Whether the bounds leave no value."""
        if self.minimum is None or self.maximum is None:
            return False
        if self.type == "integer":
            first = math.floor(self.minimum) + 1 if self.min_open else math.ceil(self.minimum)
            return bool(self.problem(first))
        return self.minimum > self.maximum or (self.minimum == self.maximum and (self.min_open or self.max_open))

    @property
    def range(self) -> str:
        """The bounds as an interval: ``[0, 1)``."""
        low = "(-inf" if self.minimum is None else f"{'(' if self.min_open else '['}{self.minimum:g}"
        high = "inf)" if self.maximum is None else f"{self.maximum:g}{')' if self.max_open else ']'}"
        return f"{low}, {high}"


def _typed(value: Any, kind: str) -> bool:
    if kind == "boolean":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind == "integer":
        return isinstance(value, int)
    if kind == "number":
        return isinstance(value, (int, float)) and math.isfinite(value)
    # An empty text cannot be said in a sentence, but a program may well take it.
    return isinstance(value, str) and "\0" not in value


@dataclass(frozen=True)
class Argument:
    """A value that a command takes: positional where ``option`` is empty, else written behind that option.

    ``kinds`` has one kind, or one for each of several values that always go together. What is ``multiple`` may be given again
    and again: its value is a list. ``level`` is the place in the command's path that it belongs to: 0 is the program itself.
    """

    name: str
    kinds: tuple[Kind, ...] = (Kind(),)
    option: str = ""
    required: bool = False
    default: Any = None
    multiple: bool = False
    level: int = 0
    help: str = ""
    metavar: str = ""
    values: tuple[Any, ...] = ()
    phrases: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The name as one says it: ``learning rate``."""
        return self.name.replace("_", " ").replace("-", " ").replace(".", " ").strip()

    def problem(self, value: Any) -> str:
        """What is wrong with the value of this argument, or an empty text."""
        if not self.multiple:
            return self.item_problem(value)
        if not isinstance(value, list):
            return f"{value!r} is no list, and '{self.name}' may be given several times"
        if not value and self.required:
            return "the list is empty"
        return next((found for found in map(self.item_problem, value) if found), "")

    def item_problem(self, value: Any) -> str:
        """The same for one of several values."""
        if len(self.kinds) == 1:
            return self.kinds[0].problem(value)
        if not isinstance(value, list) or len(value) != len(self.kinds):
            return f"{value!r} is no list of {len(self.kinds)} values"
        return next((found for kind, part in zip(self.kinds, value, strict=True) if (found := kind.problem(part))), "")


@dataclass(frozen=True)
class Flag:
    """A switch: ``name`` as it is written. ``off`` is its opposite, if it has one; ``confirm`` wants a question first."""

    name: str
    off: str = ""
    count: bool = False
    confirm: bool = False
    level: int = 0
    help: str = ""
    phrases: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The name as one says it: ``dry run``."""
        return self.name.lstrip("-+/").replace("-", " ").replace("_", " ")


@dataclass(frozen=True)
class Command:
    """A command that can be run. Arguments and flags of the groups above it are among its own, with their level."""

    path: tuple[str, ...]
    help: str = ""
    arguments: tuple[Argument, ...] = ()
    flags: tuple[Flag, ...] = ()
    phrases: tuple[str, ...] = ()
    confirm: bool = False

    @property
    def name(self) -> str:
        """``data split``; the program itself has an empty name."""
        return " ".join(self.path)

    @property
    def required(self) -> list[Argument]:
        """The arguments without which it does not run."""
        return [argument for argument in self.arguments if argument.required]

    def argument(self, name: str) -> Argument | None:
        """The argument of a name."""
        return next((argument for argument in self.arguments if argument.name == name), None)

    def flag(self, name: str) -> Flag | None:
        """The flag that a name switches on or off."""
        return next((flag for flag in self.flags if name and name in (flag.name, flag.off)), None)

    @property
    def flag_names(self) -> list[str]:
        """All names of flags, both ways."""
        return [name for flag in self.flags for name in (flag.name, flag.off) if name]


@dataclass(frozen=True)
class Schema:
    """A program: its name, and its commands by their full name. ``groups`` are the names that only lead to commands."""

    cli_name: str
    commands: dict[str, Command]
    help: str = ""
    groups: dict[str, str] = field(default_factory=dict)  # name -> help

    def children(self, group: str) -> list[Command]:
        """The commands right below a group."""
        depth = len(group.split())
        return [c for c in self.commands.values() if len(c.path) == depth + 1 and list(c.path[:depth]) == group.split()]


def doubled(command: Command) -> str:
    """What has a name twice in a command, or an empty text: an answer could not tell one from the other."""
    arguments = Counter(argument.name for argument in command.arguments)
    written = Counter([*command.flag_names, *(a.option for a in command.arguments if a.option)])
    return next((name for names in (arguments, written) for name, number in names.items() if number > 1), "")
