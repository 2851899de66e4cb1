"""Reads and writes a schema as YAML. Every mistake is told with its line, key and a near miss, all at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.knowledge.commands.schema import TYPES, Argument, Command, Flag, Kind, Schema, doubled

Key = tuple[str, ...]
DEEPEST = 24  # nested levels of YAML

# What may stand where: key -> what its value is.
TEXT, TRUTH, NUMBER, COUNT, LIST, TEXTS, TABLE, ANY = (
    "text",
    "true or false",
    "a number",
    "a whole number from 1 on",
    "a list",
    "a list of text",
    "a mapping",
    "anything",
)
FIELDS = {
    "schema": {
        "cli_name": TEXT,
        "help": TEXT,
        "commands": TABLE,
        "args": TABLE,
        "flags": TABLE,
        "phrases": TEXTS,
        "confirm": TRUTH,
        "runs": TRUTH,
    },
    "command": {
        "name": TEXT,
        "help": TEXT,
        "subcommands": TABLE,
        "commands": TABLE,
        "args": TABLE,
        "flags": TABLE,
        "phrases": TEXTS,
        "confirm": TRUTH,
        "runs": TRUTH,
    },
    "argument": {
        "name": TEXT,
        "type": ANY,
        "enum": LIST,
        "required": TRUTH,
        "default": ANY,
        "help": TEXT,
        "option": TEXT,
        "positional": TRUTH,
        "multiple": TRUTH,
        "nargs": COUNT,
        "min": NUMBER,
        "max": NUMBER,
        "min_open": TRUTH,
        "max_open": TRUTH,
        "metavar": TEXT,
        "values": LIST,
        "phrases": TEXTS,
    },
    "flag": {"name": TEXT, "help": TEXT, "off": TEXT, "count": TRUTH, "confirm": TRUTH, "phrases": TEXTS},
}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


CHECKS: dict[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    TRUTH: lambda value: isinstance(value, bool),
    NUMBER: _number,
    COUNT: lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
    LIST: lambda value: isinstance(value, list) and bool(value),
    TEXTS: lambda value: isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value),
    TABLE: lambda value: isinstance(value, (dict, list)),
    ANY: lambda _: True,
}


def read_schema(path: Path) -> Schema:
    """The schema in a YAML file.

    Raises:
        ConfigError: a file that cannot be read, or one line for every mistake in it.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the schema: {getattr(error, 'strerror', None) or error}", where=str(path)) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from error
    reader = Reader(str(path))
    values = reader.plain(root, ()) if root else {}
    schema = reader.schema(values)
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    assert schema is not None
    return schema


@dataclass
class Reader:
    """One reading: the lines of all keys, and what was wrong."""

    path: str
    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def problem(self, key: Key, what: str, fix: str = "") -> None:
        """Keeps a mistake under the line of its key, or of the nearest key above."""
        place = next((self.lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.lines), 1)
        name = f"{'.'.join(key)}: " if key else ""
        self.problems.append(f"{self.path}:{place}: {name}{what}{f' ({fix})' if fix else ''}")

    def plain(self, node: Any, key: Key) -> Any:
        """The value of a node. Keys are text, and on, off, yes and no are words, as they are on a command line."""
        self.lines.setdefault(key, node.start_mark.line + 1)
        if len(key) > DEEPEST:
            raise ConfigError("nested too deeply", where=f"{self.path}:{node.start_mark.line + 1}")
        if node.id == "scalar":
            return _scalar(node)
        if node.id == "sequence":
            return [self.plain(child, (*key, str(number))) for number, child in enumerate(node.value)]
        values: dict[str, Any] = {}
        for name_node, child in node.value:
            name = str(name_node.value)
            below = (*key, name)
            line = name_node.start_mark.line + 1
            if name in values:
                first = self.lines[below]
                self.problems.append(f"{self.path}:{line}: {'.'.join(below)}: is given twice (first at line {first})")
                continue
            self.lines[below] = line
            values[name] = self.plain(child, below)
        return values

    def fields(self, value: Any, key: Key, kind: str) -> dict[str, Any]:
        """The fields of a mapping that are known and of their type; null is a field that is not there."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problem(key, f"{value!r} is no mapping of a {kind}'s fields", "known: " + ", ".join(FIELDS[kind]))
            return {}
        found = {}
        for name, item in value.items():
            wanted = FIELDS[kind].get(name)
            if wanted is None:
                self.problem((*key, name), f"unknown key of a {kind}", did_you_mean(name, FIELDS[kind]))
            elif item is not None and not CHECKS[wanted](item):
                self.problem((*key, name), f"{item!r} is not {wanted}")
            elif item is not None:
                found[name] = item
        return found

    def table(self, value: Any, key: Key) -> Iterator[tuple[str, Any, Key]]:
        """(name, body, key) of each entry: of a mapping by name, or of a list whose entries have a ``name``."""
        if isinstance(value, dict):
            yield from ((name, body, (*key, name)) for name, body in value.items())
            return
        seen: set[str] = set()
        for number, body in enumerate(value or ()):
            below = (*key, str(number))
            name = body if isinstance(body, str) else body.get("name") if isinstance(body, dict) else None
            if not isinstance(name, str) or not name:
                self.problem(below, "an entry of a list needs a name", "write 'name: ...', or a mapping by name")
                continue
            if name in seen:
                self.problem(below, f"'{name}' is given twice")
            seen.add(name)
            yield name, None if isinstance(body, str) else body, below

    def schema(self, value: Any) -> Schema | None:
        """The whole file."""
        found = self.fields(value, (), "schema")
        name = found.get("cli_name", "")
        if not name and "cli_name" not in (value or {}):
            self.problem((), "no 'cli_name'", "the program's name as it is typed")
        elif name and not _word(name):
            self.problem(("cli_name",), f"{name!r} is no one word")
        arguments, flags = self.parameters(found, (), 0)
        commands: dict[str, Command] = {}
        groups: dict[str, str] = {}
        # A program without commands is a command itself.
        if found.get("runs") or ("commands" not in found and (arguments or flags)):
            phrases, confirm = tuple(found.get("phrases", ())), found.get("confirm", False)
            commands[""] = Command((), found.get("help", ""), arguments, flags, phrases, confirm)
            self.check(commands[""], ())
        if found.get("commands"):
            self.commands(found["commands"], ("commands",), (), arguments, flags, commands, groups)
        elif not commands:
            self.problem((), "no commands", "commands: {NAME: {help: ..., args: {...}, flags: {...}}}")
        return Schema(name, commands, found.get("help", ""), groups) if not self.problems else None

    def commands(
        self,
        value: Any,
        key: Key,
        path: tuple[str, ...],
        arguments: tuple[Argument, ...],
        flags: tuple[Flag, ...],
        commands: dict[str, Command],
        groups: dict[str, str],
    ) -> None:
        """Fills in the commands below a group."""
        for name, body, place in self.table(value, key):
            if not _word(name):
                self.problem(place, f"{name!r} is no one word", "a command's name is one word")
            found = self.fields(body, place, "command")
            own = (*path, name)
            mine, switches = self.parameters(found, place, len(own))
            all_arguments, all_flags = (*arguments, *mine), (*flags, *switches)
            below = next((word for word in ("subcommands", "commands") if word in found), "")
            if below and not found[below]:
                self.problem((*place, below), "is empty", "name a command, or leave the key out")
            if below:
                groups[" ".join(own)] = found.get("help", "")
                self.commands(found[below], (*place, below), own, all_arguments, all_flags, commands, groups)
            if not below or found.get("runs"):
                phrases, confirm = tuple(found.get("phrases", ())), found.get("confirm", False)
                command = Command(own, found.get("help", ""), all_arguments, all_flags, phrases, confirm)
                commands[command.name] = command
                self.check(command, place)

    def check(self, command: Command, place: Key) -> None:
        """What can only be seen of a whole command."""
        if name := doubled(command):
            self.problem(place, f"'{name}' is there twice, groups above included", "rename one of them")
        known = {argument.name for argument in command.arguments}
        for phrase in command.phrases:
            for slot in slots(phrase):
                if slot not in known:
                    self.problem(
                        (*place, "phrases"),
                        f"no argument '{slot}' in {phrase!r}",
                        did_you_mean(slot, known) if known else "it has none",
                    )

    def parameters(self, found: Mapping[str, Any], place: Key, level: int) -> tuple[tuple[Argument, ...], tuple[Flag, ...]]:
        """Arguments and flags of one level."""
        arguments = [self.argument(*entry, level) for entry in self.table(found.get("args"), (*place, "args"))]
        flags = [self.flag(*entry, level) for entry in self.table(found.get("flags"), (*place, "flags"))]
        return tuple(arguments), tuple(flags)

    def argument(self, name: str, body: Any, key: Key, level: int) -> Argument:
        """One argument; its default, enum and values are held against its type."""
        found = self.fields(body, key, "argument")
        wrong_before = len(self.problems)
        option = "" if found.get("positional") else found.get("option", "--" + name.replace("_", "-"))
        if found.get("positional") and "option" in found:
            self.problem((*key, "option"), "a positional argument has no option", "leave one of them out")
        if option and (not option.startswith(("-", "+", "/")) or not _word(option)):
            self.problem((*key, "option"), f"{option!r} is no option", "write it as it is typed: --name")
        argument = Argument(
            name,
            self.kinds(found, key),
            option,
            found.get("required", False),
            found.get("default"),
            found.get("multiple", False),
            level,
            found.get("help", ""),
            found.get("metavar", ""),
            tuple(found.get("values", ())),
            tuple(found.get("phrases", ())),
        )
        if len(self.problems) > wrong_before:
            return argument  # what is held against a type that is wrong itself tells nothing
        if argument.default is not None and (wrong := argument.problem(argument.default)):
            self.problem((*key, "default"), wrong)
        for item in argument.values:
            if wrong := argument.item_problem(item):
                self.problem((*key, "values"), wrong)
        for phrase in argument.phrases:
            if slots(phrase) != ["value"]:
                self.problem((*key, "phrases"), f"{phrase!r} has no {{value}}", "such as 'with a rate of {value}'")
        return argument

    def kinds(self, found: Mapping[str, Any], key: Key) -> tuple[Kind, ...]:
        """One kind, or one for each of ``nargs`` values."""
        given = found.get("type", _of_enum(found.get("enum", ())))
        names = given if isinstance(given, list) else [given] * found.get("nargs", 1)
        if not names:
            self.problem((*key, "type"), "the list of types is empty")
        unknown = [name for name in names if name not in TYPES]
        for name in unknown:
            self.problem((*key, "type"), f"unknown type {name!r}", did_you_mean(str(name), TYPES))
        enum = tuple(found.get("enum", ()))
        bounds = (found.get("min"), found.get("max"), found.get("min_open", False), found.get("max_open", False))
        kinds = tuple(Kind(TYPES.get(str(name), "text"), enum, *bounds) for name in names)
        if unknown:
            return kinds
        for number, item in enumerate(enum):
            if any(item == other and type(item) is type(other) for other in enum[:number]):
                self.problem((*key, "enum"), f"{item!r} is there twice")
            if wrong := next((w for kind in kinds if (w := Kind(kind.type).problem(item))), ""):
                self.problem((*key, "enum"), wrong, "quote it if it is text")
        low, high = bounds[:2]
        if not enum and (kind := next((kind for kind in kinds if kind.empty), None)):
            self.problem((*key, "min"), f"no {kind.type} is in {kind.range}")
        if (low is not None or high is not None) and not {kind.type for kind in kinds} <= {"integer", "number"}:
            self.problem((*key, "min" if low is not None else "max"), "bounds are for numbers", "type: integer or number")
        return kinds

    def flag(self, name: str, body: Any, key: Key, level: int) -> Flag:
        """One flag; a text is its help."""
        found = self.fields({"help": body} if isinstance(body, str) else body, key, "flag")
        written = name if name[:1] in "-+/" else "--" + name.replace("_", "-")
        if not _word(written):
            self.problem(key, f"{name!r} is no flag", "write it as it is typed: --name")
        return Flag(
            written,
            found.get("off", ""),
            found.get("count", False),
            found.get("confirm", False),
            level,
            found.get("help", ""),
            tuple(found.get("phrases", ())),
        )


def slots(phrase: str) -> list[str]:
    """The names in braces."""
    return re.findall(r"\{([^{}]*)\}", phrase)


def _word(name: str) -> bool:
    return bool(name) and not any(character.isspace() for character in name)


def _of_enum(enum: Any) -> str:
    """The type that a list of values has."""
    kinds = {type(item) for item in enum}
    return "integer" if kinds == {int} else "number" if kinds and kinds <= {int, float} else "text"


def _scalar(node: Any) -> Any:
    """A plain scalar as JSON has it; what YAML 1.1 takes for a date, a clock or a truth value beside true and false is text."""
    text, kind = node.value, node.tag.rpartition(":")[2]
    if node.style is not None or kind == "str":
        # 1e-4 is a number to everybody but YAML 1.1.
        return _float(text) if node.style is None and text[:1] in "+-.0123456789" and "e" in text.lower() else text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true" if text.lower() in ("true", "false") else text
    if kind == "int":
        try:
            return int(text)
        except ValueError:
            return text
    return _float(text) if kind == "float" else text


def _float(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def schema_values(schema: Schema) -> dict[str, Any]:
    """The schema as the plain values that :func:`read_schema` reads; what is as by default is left out."""
    root: dict[str, Any] = {"cli_name": schema.cli_name, "help": schema.help}
    nodes: dict[str, dict[str, Any]] = {"": root}
    for name in sorted({*schema.groups, *schema.commands} - {""}, key=lambda name: _place(name, schema)):
        node: dict[str, Any] = {"help": schema.groups.get(name, "")}
        above, _, last = name.rpartition(" ")
        nodes[above].setdefault("commands" if not above else "subcommands", {})[last] = node
        nodes[name] = node
    for command in schema.commands.values():
        node = nodes[command.name]
        node.update(help=command.help, phrases=list(command.phrases), confirm=command.confirm)
        node["runs"] = command.name in schema.groups or (not command.path and len(schema.commands) > 1)
        for level in range(len(command.path) + 1):
            owner = nodes[" ".join(command.path[:level])]
            owner["args"] = {a.name: argument_values(a) for a in command.arguments if a.level == level}
            owner["flags"] = {f.name: flag_values(f) for f in command.flags if f.level == level}
    values: dict[str, Any] = _pruned(root)
    return values


def _place(name: str, schema: Schema) -> int:
    """Groups go where their first command is."""
    names = list(schema.commands)
    return next(n for n, other in enumerate(names) if other == name or other.startswith(name + " ")) * 100 + len(name.split())


def argument_values(argument: Argument) -> dict[str, Any]:
    """An argument's fields."""
    kind, several = argument.kinds[0], len(argument.kinds) > 1
    same = len(set(argument.kinds)) == 1
    types: Any = kind.type if same else [kind.type for kind in argument.kinds]
    return {
        "type": types,
        "nargs": len(argument.kinds) if several and same else None,
        "enum": list(kind.enum),
        "min": kind.minimum,
        "max": kind.maximum,
        "min_open": kind.min_open,
        "max_open": kind.max_open,
        "positional": not argument.option,
        "option": argument.option if argument.option != "--" + argument.name.replace("_", "-") else "",
        "required": argument.required,
        "default": argument.default,
        "multiple": argument.multiple,
        "metavar": argument.metavar,
        "help": argument.help,
        "values": list(argument.values),
        "phrases": list(argument.phrases),
    }


def flag_values(flag: Flag) -> dict[str, Any]:
    """A flag's fields."""
    return {
        "help": flag.help,
        "off": flag.off,
        "count": flag.count,
        "confirm": flag.confirm,
        "phrases": list(flag.phrases),
    }


def _pruned(value: Any) -> Any:
    """Without what is empty; a default may be empty or false."""
    if not isinstance(value, dict):
        return value
    pruned = {name: _pruned(item) for name, item in value.items()}
    return {name: item for name, item in pruned.items() if (name == "default" and item is not None) or _says(item, name)}


def _says(item: Any, name: str) -> bool:
    if name in ("min", "max"):
        return item is not None
    if name in ("args", "flags"):
        return bool(item)
    return isinstance(item, dict) or item not in (None, "", [], False)


def to_yaml(schema: Schema) -> str:
    """The schema as YAML; :func:`read_schema` reads the same schema again."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """No anchors: options that several commands share are written out."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
            return True

    def quoted(dumper: Any, data: str) -> Any:
        style = "'" if isinstance(_float(data), float) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, quoted)
    text: str = yaml.dump(schema_values(schema), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
