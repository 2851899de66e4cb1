"""The schema of any Click program, groups that load their commands late included; and its own parser, without running it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from mlxforge.core.errors import ConfigError
from mlxforge.knowledge.commands.reader import slots
from mlxforge.knowledge.commands.schema import Argument, Command, Flag, Kind, Schema

CHOICES = re.compile(r"[a-z0-9][a-z0-9_.-]*(\|[a-z0-9][a-z0-9_.-]*)+")  # a metavar that lists what may be given
SIMPLE = {click.INT: "integer", click.FLOAT: "number", click.BOOL: "boolean", click.STRING: "text", click.UNPROCESSED: "text"}
# What a program that takes text says of it.
METAVARS = {"INTEGER": "integer", "NUMBER": "number", "FLOAT": "number", "FILE": "file", "DIR": "folder", "FOLDER": "folder"}
METAVARS |= {"DIRECTORY": "folder", "PATH": "path"}
DEEPEST = 12  # levels of groups: more is a group that holds itself
RISKS = {"--force", "--yes", "--overwrite", "--delete", "--purge", "--prune"}  # flags that want a confirmation


def load_program(spec: str) -> click.Command:
    """The Click program that ``module:name`` names; the working folder is looked in too.

    Raises:
        ConfigError: no such module or name, or something that is no Click command.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"{spec!r} names no command", where="--from-click", fix="write module:command, such as flask.cli:cli")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the result
            found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        what = f"cannot import '{module_name}': {type(error).__name__}: {error}"
        raise ConfigError(what, where="--from-click", fix="install it, or run from the folder it lies in") from error
    finally:
        sys.path.remove(here)
    for part in name.split("."):
        if not hasattr(found, part):
            commands = [n for n, value in vars(found).items() if isinstance(value, click.Command)] if vars(found) else []
            known = f"its commands: {', '.join(commands)}" if commands else "it has no Click command"
            raise ConfigError(f"no '{part}' in '{module_name}'", where="--from-click", fix=known)
        found = getattr(found, part)
    if not isinstance(found, click.Command):
        what = f"'{spec}' is of type {type(found).__name__}, not a Click command"
        raise ConfigError(what, where="--from-click", fix="name the object that click.group or click.command made")
    return found


def typed_name(spec: str, program: click.Command) -> str:
    """What is typed to start a program: the one script that its module is installed with, else the program's own name."""
    module = spec.partition(":")[0]
    scripts = {script.name for script in entry_points(group="console_scripts") if script.value.partition(":")[0] == module}
    return scripts.pop() if len(scripts) == 1 else program.name or "program"


@dataclass
class Found:
    """What was read of a program: the schema, and a note for whatever has no place in it."""

    schema: Schema
    notes: list[str] = field(default_factory=list)


def from_click(program: click.Command, cli_name: str) -> Found:
    """The schema of a program that is started as ``cli_name``.

    Hidden and deprecated parts, and options that only print and end, are left out with a note.
    """
    name = cli_name
    notes: list[str] = []
    commands: dict[str, Command] = {}
    groups: dict[str, str] = {}
    for path, command, context, above in _walk(program, click.Context(program, info_name=name), (), [], notes):
        own = [*above, (len(path), command, context)]
        if isinstance(command, click.Group) and path:
            groups[" ".join(path)] = first_sentence(command)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found = _command(path, command, own, notes)
            commands[found.name] = found
    if not commands:
        raise ConfigError("no command that can be run", where=name)
    return Found(Schema(name, commands, first_sentence(program), groups), list(dict.fromkeys(notes)))


def _loaded(group: click.Group, context: click.Context, name: str) -> click.Command | None:
    """A command of a group, which may be imported only now."""
    try:
        return group.get_command(context, name)
    except Exception as error:  # whatever its module does
        what = f"cannot load the command '{name}': {type(error).__name__}: {error}"
        raise ConfigError(what, where=context.command_path, fix="mend its module, or install what it needs") from error


Levels = list[tuple[int, click.Command, click.Context]]


def _walk(
    command: click.Command, context: click.Context, path: tuple[str, ...], above: Levels, notes: list[str]
) -> Iterator[tuple[tuple[str, ...], click.Command, click.Context, Levels]]:
    """A command and all below it."""
    yield path, command, context, above
    if not isinstance(command, click.Group):
        return
    if len(path) >= DEEPEST:
        raise ConfigError(f"'{' '.join(path[:3])} ...' goes on for ever", where=context.command_path)
    for name in command.list_commands(context):
        child = _loaded(command, context, name)
        if child is None or child.hidden or child.deprecated:
            why = "cannot be loaded" if child is None else "hidden" if child.hidden else "deprecated"
            notes.append(f"left out: {' '.join([*path, name])} ({why})")
            continue
        below = click.Context(child, info_name=name, parent=context)
        yield from _walk(child, below, (*path, name), [*above, (len(path), command, context)], notes)


def _command(path: tuple[str, ...], command: click.Command, levels: Levels, notes: list[str]) -> Command:
    arguments: list[Argument] = []
    flags: list[Flag] = []
    names: set[str] = set()
    for level, owner, context in reversed(levels):  # a command's own names come before those of the groups above it
        found_arguments, found_flags = _parameters(owner, context, level, notes)
        for argument in found_arguments:
            owner_name = owner.name or "program"
            if argument.option in names - {""}:
                notes.append(f"left out: {argument.option} of '{owner_name}' ({' '.join(path)} has its own)")
                continue
            if argument.name in names:
                argument = replace(argument, name=f"{owner_name}.{argument.name}")
            names |= {argument.name, argument.option}
            arguments.append(argument)
        for flag in found_flags:
            if {flag.name, flag.off} & (names - {""}):
                notes.append(f"left out: {flag.name} of '{owner.name or 'program'}' ({' '.join(path)} has its own)")
                continue
            names |= {flag.name, flag.off}
            flags.append(flag)
    arguments.sort(key=lambda argument: argument.level)
    flags.sort(key=lambda flag: flag.level)
    return Command(path, first_sentence(command), tuple(arguments), tuple(flags))


def _parameters(
    command: click.Command, context: click.Context, level: int, notes: list[str]
) -> tuple[list[Argument], list[Flag]]:
    arguments: list[Argument] = []
    flags: list[Flag] = []
    for parameter in command.params:
        if reason := _left_out(parameter):
            notes.append(f"left out: {_written(parameter)} of '{context.command_path}' ({reason})")
        elif isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count):
            flags.append(_flag(parameter, level))
        else:
            arguments.append(_argument(parameter, context, level, notes))
    return arguments, flags


def _left_out(parameter: click.Parameter) -> str:
    if getattr(parameter, "hidden", False):
        return "hidden"
    if getattr(parameter, "deprecated", False):
        return "deprecated"
    if parameter.is_eager and not parameter.expose_value:
        return "prints and ends"
    return ""


def _written(parameter: click.Parameter) -> str:
    """An option's longest name, an argument's own."""
    if not isinstance(parameter, click.Option):
        return str(parameter.name)
    return _longest(parameter.opts)


def _longest(names: Sequence[str]) -> str:
    return max(names, key=lambda name: (name.startswith("--"), len(name)), default="")


def _flag(option: click.Option, level: int) -> Flag:
    name = _longest(option.opts)
    off = _longest(option.secondary_opts)
    return Flag(name, off, bool(option.count), name in RISKS, level, _plain(option.help))


def _argument(parameter: click.Parameter, context: click.Context, level: int, notes: list[str]) -> Argument:
    option = _written(parameter) if isinstance(parameter, click.Option) else ""
    name = option.lstrip("-+/").replace("-", "_") if option else str(parameter.name)
    where = f"{option or name} of '{context.command_path}'"
    kinds = _kinds(parameter, where, notes)
    if parameter.callback is not None:
        notes.append(f"may refuse values that fit its type: {where} has a check of its own")
    multiple = parameter.nargs == -1 or bool(getattr(parameter, "multiple", False))
    default = _default(parameter, context, where, notes)
    prompted = bool(getattr(parameter, "prompt", None)) and default is None
    metavar = parameter.metavar or ""
    argument = Argument(
        name,
        kinds,
        option,
        bool(parameter.required) or prompted,
        default,
        multiple,
        level,
        _plain(getattr(parameter, "help", None)),
        "" if kinds[0].enum and CHOICES.fullmatch(metavar) else metavar,
        _examples(parameter.type),
    )
    if default is not None and argument.problem(default):
        return replace(argument, default=None)
    return argument


def _default(parameter: click.Parameter, context: click.Context, where: str, notes: list[str]) -> Any:
    """The default as JSON has it; one that is computed is not: it may differ the next time."""
    default = parameter.get_default(context, call=False)
    if callable(default):
        notes.append(f"no default written: that of {where} is computed when the program runs")
        return None
    if default is None or not isinstance(default, (str, int, float, bool, list, tuple)):
        return None
    if isinstance(default, (list, tuple)):
        return [list(item) if isinstance(item, tuple) else item for item in default] or None
    return default


def _kinds(parameter: click.Parameter, where: str, notes: list[str]) -> tuple[Kind, ...]:
    if isinstance(parameter.type, click.Tuple):
        return tuple(_kind(part, "", where, notes) for part in parameter.type.types)
    return (_kind(parameter.type, parameter.metavar or "", where, notes),) * max(1, parameter.nargs)


def _kind(type_: Any, metavar: str, where: str, notes: list[str]) -> Kind:
    """A Click type as a kind."""
    if isinstance(type_, click.Choice):
        return Kind("text", tuple(getattr(item, "name", item) if not isinstance(item, str) else item for item in type_.choices))
    if isinstance(type_, (click.IntRange, click.FloatRange)):
        name = "integer" if isinstance(type_, click.IntRange) else "number"
        return Kind(name, (), type_.min, type_.max, bool(type_.min_open), bool(type_.max_open))
    if isinstance(type_, click.Path):
        said = METAVARS.get(metavar.rstrip(".").upper(), "path")
        return Kind("folder" if not type_.file_okay else "file" if not type_.dir_okay else said)
    if isinstance(type_, click.File):
        return Kind("file")
    if type_ is click.STRING and CHOICES.fullmatch(metavar):
        return Kind("text", tuple(metavar.split("|")))
    if type_ not in SIMPLE and not _examples(type_):
        notes.append(f"read as text: {where} is of the type '{type_.name}'; list values for it in the schema")
    if type_ is click.STRING:
        return Kind(METAVARS.get(metavar.rstrip(".").upper(), "text"))
    return Kind(SIMPLE.get(type_, "text"))


def _examples(type_: Any) -> tuple[str, ...]:
    """What a type of a program's own says that it takes, in an attribute of that name."""
    found = getattr(type_, "examples", ())
    return tuple(map(str, found)) if isinstance(found, (list, tuple)) else ()


def first_sentence(command: click.Command) -> str:
    """The first sentence of a command's help."""
    text = _plain(command.short_help or command.help or (command.callback and command.callback.__doc__))
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def _plain(text: str | None) -> str:
    """Help in one line, without Click's marks."""
    paragraph = (text or "").replace("\b", "").strip().split("\n\n")[0]
    return " ".join(paragraph.split())


def parsed(program: click.Command, words: Sequence[str]) -> list[click.Context]:
    """The contexts that the program's own parser makes of a line, the outermost first. Nothing is invoked.

    Raises:
        click.UsageError: what the program would say of the line.
    """
    context = program.make_context(program.name or "program", list(words))
    contexts = [context]
    while isinstance(command := context.command, click.Group):
        left = [*getattr(context, "_protected_args", ()), *context.args]
        if not left and command.invoke_without_command:
            break
        name, child, rest = command.resolve_command(context, left)
        assert child is not None
        context = child.make_context(name, rest, parent=context)
        contexts.append(context)
    return contexts


def merged(schema: Schema, older: Schema) -> Schema:
    """A schema with the phrases, values and confirmations that people wrote into an older one of the same program."""
    commands = {}
    for name, command in schema.commands.items():
        before = older.commands.get(name)
        commands[name] = _command_merged(command, before) if before else command
    return replace(schema, commands=commands)


def _command_merged(command: Command, before: Command) -> Command:
    arguments = []
    for argument in command.arguments:
        kept = before.argument(argument.name)
        values = tuple(value for value in kept.values if not argument.item_problem(value)) if kept else ()
        arguments.append(replace(argument, values=values or argument.values, phrases=kept.phrases if kept else ()))
    flags = []
    for flag in command.flags:
        same = before.flag(flag.name)
        flags.append(replace(flag, phrases=same.phrases, confirm=same.confirm) if same else flag)
    known = {argument.name for argument in arguments}
    phrases = tuple(phrase for phrase in before.phrases if known.issuperset(slots(phrase)))
    return replace(command, arguments=tuple(arguments), flags=tuple(flags), phrases=phrases, confirm=before.confirm)
