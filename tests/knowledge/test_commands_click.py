"""The schema of a Click program: every kind of parameter, and lines that its own parser takes as they were meant."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import ModuleType

import click
import pytest

from mlxforge.cli.main import cli
from mlxforge.core.errors import ConfigError
from mlxforge.knowledge.commands.from_click import from_click, load_program, merged, parsed
from mlxforge.knowledge.commands.grammar import Grammar
from mlxforge.knowledge.commands.line import command_line, words
from mlxforge.knowledge.commands.reader import read_schema, to_yaml
from mlxforge.knowledge.commands.schema import Kind


class Late(click.Group):
    """Commands that are made when they are asked for."""

    def list_commands(self, ctx):
        return ["count"]

    def get_command(self, ctx, cmd_name):
        return count if cmd_name == "count" else None


@click.command()
@click.argument("words", nargs=-1, required=True)
@click.option("-v", "--verbose", count=True, help="Say more.")
def count(**_):
    """Count words. Each of them."""


@click.group()
@click.option("--profile", default="home", show_default=True)
@click.option("--colour/--no-colour", default=True)
@click.version_option("1")
def program(**_):
    """A program with all kinds of parameters."""


@program.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", required=False)
@click.option("--mode", type=click.Choice(["fast", "safe"]), default="safe")
@click.option("--level", type=click.IntRange(1, 9, max_open=True), default=lambda: 4)
@click.option("--ratio", type=click.FloatRange(0, 1, min_open=True))
@click.option("--point", nargs=2, type=int)
@click.option("--pair", type=(str, float), multiple=True)
@click.option("--tag", "-t", multiple=True)
@click.option("--upper", "case", flag_value="upper")
@click.option("--ok", type=bool)
@click.option("--when", type=click.DateTime())
@click.option("--password", prompt=True)
@click.option("--secret", hidden=True)
@click.option("--profile")
@click.option("--force", is_flag=True)
def copy(**_):
    """Copy a source to a target."""
    raise AssertionError("nothing is to be run")


@program.command(hidden=True)
def ghost():
    """Nobody sees it."""


program.add_command(Late("late"))


def test_every_kind_of_parameter():
    found = from_click(program, "tool")
    assert list(found.schema.commands) == ["copy", "late count"]
    copy_ = found.schema.commands["copy"]
    arguments = {argument.name: argument for argument in copy_.arguments}
    assert arguments["source"].required
    assert arguments["source"].option == ""
    assert not arguments["target"].required
    assert arguments["mode"].kinds == (Kind("text", ("fast", "safe")),)
    assert arguments["mode"].default == "safe"
    assert arguments["level"].kinds == (Kind("integer", (), 1, 9, False, True),)
    assert arguments["level"].default is None
    assert arguments["ratio"].kinds == (Kind("number", (), 0, 1, True, False),)
    assert arguments["point"].kinds == (Kind("integer"), Kind("integer"))
    assert arguments["pair"].kinds == (Kind("text"), Kind("number"))
    assert arguments["pair"].multiple
    assert arguments["tag"].option == "--tag"
    assert arguments["ok"].kinds == (Kind("boolean"),)
    assert arguments["password"].required
    assert arguments["profile"].level == 1
    assert {flag.name: flag.off for flag in copy_.flags} == {"--colour": "--no-colour", "--upper": "", "--force": ""}
    assert copy_.flag("--force").confirm
    assert found.schema.commands["late count"].flag("--verbose").count
    assert found.schema.commands["late count"].help == "Count words."
    told = "\n".join(found.notes)
    for part in ("--version", "ghost", "--secret", "computed", "--profile of 'program'", "of the type 'datetime'"):
        assert part in told


def test_a_type_of_its_own_says_what_it_takes(tmp_path):
    class Colour(click.ParamType):
        name = "colour"
        examples = ("red", "blue")

    @click.command(params=[click.Option(["--ink"], type=Colour())])
    def paint(**_):
        """Paint."""

    found = from_click(paint, "tool")
    assert found.schema.commands[""].argument("ink").values == ("red", "blue")
    assert not found.notes
    assert merged(found.schema, found.schema) == found.schema
    written = to_yaml(found.schema).replace("red", "green")
    (tmp_path / "s.yaml").write_text(written)
    assert merged(found.schema, read_schema(tmp_path / "s.yaml")).commands[""].argument("ink").values == ("green", "blue")


def test_a_program_that_is_a_command_and_one_that_has_commands_beside(tmp_path):
    both = click.Group("both", invoke_without_command=True, params=[click.Option(["--deep"], is_flag=True)])
    both.add_command(count, "count")
    for made, names in ((count, [""]), (both, ["", "count"])):
        schema = from_click(made, "tool").schema
        assert list(schema.commands) == names
        (tmp_path / "s.yaml").write_text(to_yaml(schema))
        assert read_schema(tmp_path / "s.yaml") == schema
        for row in Grammar(schema).rows(60):
            if row.answer["action"] in ("run", "confirm"):
                parsed(made, words(schema, row.answer))


def test_its_lines_are_taken_as_they_were_meant():
    schema = from_click(program, "tool").schema
    given = {
        "source": "a b.txt",
        "mode": "fast",
        "level": 3,
        "point": [4, -5],
        "pair": [["x", 0.5], ["y", 1]],
        "tag": ["--odd"],
    }
    given |= {"password": "it's", "ok": False, "target": "-t"}
    answer = {"command": "copy", "arguments": given, "flags": ["--no-colour", "--upper", "--force"]}
    outer, inner = parsed(program, shlex.split(command_line(schema, answer))[1:])
    assert outer.params["colour"] is False
    wanted = {"source": Path("a b.txt"), "target": "-t", "mode": "fast", "level": 3, "point": (4, -5)}
    wanted |= {
        "pair": (("x", 0.5), ("y", 1.0)),
        "tag": ("--odd",),
        "password": "it's",
        "ok": False,
        "case": "upper",
        "force": True,
    }
    assert wanted.items() <= inner.params.items()
    with pytest.raises(click.UsageError, match="9 is not in the range"):
        parsed(program, ["copy", "a", "--password", "x", "--level", "9"])


@pytest.fixture(scope="module")
def own():
    return from_click(cli, "mlxforge").schema


def test_every_command_of_our_own_takes_its_rows(own):
    """The golden law: a row that runs is a line that Click's parser takes, with the values that the row has."""
    checked = 0
    for row in Grammar(own).rows(600):
        if row.answer["action"] not in ("run", "confirm"):
            continue
        context = parsed(cli, words(own, row.answer))[-1]
        command = own.commands[row.answer["command"]]
        options = {name: p.name for p in context.command.params for name in (*p.opts, *p.secondary_opts)}
        for name, value in row.answer["arguments"].items():
            argument = command.argument(name)
            if argument.level != len(command.path):
                continue
            found = context.params[options[argument.option] if argument.option else name]
            flat = [str(item) for item in (value if isinstance(value, list) else [value])]
            assert [str(item).rstrip("/") for item in (found if isinstance(found, tuple) else [found])] == [
                item.rstrip("/") for item in flat
            ] or [float(item) for item in flat] == [float(found)], (row, found)
        checked += 1
    assert checked > 300


def test_our_own_schema_is_written_as_it_is_read(own, tmp_path):
    (tmp_path / "own.yaml").write_text(to_yaml(own))
    assert read_schema(tmp_path / "own.yaml") == own


def test_phrases_and_values_outlive_the_program(own, tmp_path):
    text = to_yaml(own).replace("  fuse:\n", "  fuse:\n    phrases: ['bake {run}', 'bake it']\n    confirm: true\n")
    (tmp_path / "own.yaml").write_text(text)
    again = merged(own, read_schema(tmp_path / "own.yaml"))
    assert again.commands["fuse"].phrases == ("bake {run}", "bake it")
    assert again.commands["fuse"].confirm
    assert again.commands["chat"] == own.commands["chat"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("mlxforge", "names no command"),
        ("no_such_module:cli", "cannot import 'no_such_module'"),
        ("mlxforge.cli.main:clo", "no 'clo' in 'mlxforge.cli.main' (its commands: cli)"),
        ("mlxforge.cli.main:COMMANDS", "is of type dict, not a Click command"),
    ],
)
def test_what_is_no_program(spec, reason):
    with pytest.raises(ConfigError) as error:
        load_program(spec)
    assert reason in str(error.value)


def test_a_command_that_cannot_be_loaded_is_named():
    class Broken(click.Group):
        def list_commands(self, ctx):
            return ["gone"]

        def get_command(self, ctx, cmd_name):
            return ModuleType("x").gone

    with pytest.raises(ConfigError, match="tool: cannot load the command 'gone': AttributeError"):
        from_click(Broken("b"), "tool")
