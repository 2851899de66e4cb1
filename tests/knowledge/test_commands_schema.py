"""A program's schema: what is read, what is refused and where, and which answers hold."""

from __future__ import annotations

import pytest

from mlxforge.core.errors import ConfigError
from mlxforge.data.commands import Thresholds
from mlxforge.knowledge.commands.line import command_line
from mlxforge.knowledge.commands.reader import read_schema, to_yaml
from mlxforge.knowledge.commands.validate import action_of, json_schema, problems, text_problems

SHIP = """\
cli_name: ship
help: Ship services.
flags:
  --trace: Show the traceback.
commands:
  deploy:
    help: Deploy a service to an environment.
    phrases: ["roll {service} out to {environment}"]
    args:
      service: {type: text, positional: true, required: true, values: [web, api]}
      environment: {enum: [staging, production], required: true}
      replicas: {type: integer, min: 1, max: 20, default: 2}
      share: {type: number, min: 0, max: 1, max_open: true}
      label: {multiple: true, metavar: KEY=VALUE}
      window: {type: [text, integer], help: Day and hour.}
    flags:
      --force: {help: Deploy over a failed check., confirm: true}
      --wait: {off: --no-wait}
      -v: {count: true}
  logs:
    help: Show the logs of a service.
    subcommands:
      tail: {help: Follow the logs., args: {service: {positional: true, required: true}}}
      clear: {help: Delete old logs., confirm: true, args: {before: {type: text}}}
"""


@pytest.fixture
def ship(tmp_path):
    path = tmp_path / "ship.yaml"
    path.write_text(SHIP)
    return read_schema(path)


def answer(**changes):
    base = {"command": "deploy", "arguments": {"service": "web", "environment": "staging"}, "flags": [], "confidence": 0.98}
    return base | {"action": "run"} | changes


def test_the_commands_of_a_file(ship):
    assert list(ship.commands) == ["deploy", "logs tail", "logs clear"]
    assert ship.groups == {"logs": "Show the logs of a service."}
    deploy = ship.commands["deploy"]
    assert [argument.name for argument in deploy.required] == ["service", "environment"]
    assert deploy.argument("environment").option == "--environment"
    assert deploy.flag_names == ["--trace", "--force", "--wait", "--no-wait", "-v"]
    assert ship.commands["logs tail"].flag("--trace").level == 0


def test_a_schema_is_written_as_it_is_read(ship, tmp_path):
    (tmp_path / "again.yaml").write_text(to_yaml(ship))
    assert read_schema(tmp_path / "again.yaml") == ship


def test_words_that_yaml_takes_for_something_else(tmp_path):
    lines = "cli_name: x\ncommands:\n  switch:\n    args:\n      state: {enum: [on, off, 2024-01-02, '1e3']}\n"
    lines += "      rate: {type: number,"
    (tmp_path / "x.yaml").write_text(lines + " default: 1e-4}\n")
    found = read_schema(tmp_path / "x.yaml")
    assert found.commands["switch"].argument("state").kinds[0].enum == ("on", "off", "2024-01-02", "1e3")
    assert found.commands["switch"].argument("rate").default == 1e-4
    (tmp_path / "y.yaml").write_text(to_yaml(found))
    assert read_schema(tmp_path / "y.yaml") == found


MISTAKES = [
    ("cli_name: ship\n", "", "s.yaml:1: no 'cli_name'"),
    (
        "    help: Deploy a",
        "    halp: Deploy a",
        "s.yaml:7: commands.deploy.halp: unknown key of a command (did you mean 'help'?)",
    ),
    (
        "type: integer",
        "type: intger",
        "s.yaml:12: commands.deploy.args.replicas.type: unknown type 'intger' (did you mean 'integer'?)",
    ),
    ("default: 2", "default: 30", "s.yaml:12: commands.deploy.args.replicas.default: 30 is not in [1, 20]"),
    ("default: 2", "default: two", "s.yaml:12: commands.deploy.args.replicas.default: 'two' is no integer"),
    ("[staging, production]", "[staging, 3]", "s.yaml:11: commands.deploy.args.environment.enum: 3 is no text"),
    ("{service} out", "{servise} out", "s.yaml:8: commands.deploy.phrases: no argument 'servise'"),
    (
        "confirm: true, args",
        "confirm: maybe, args",
        "s.yaml:24: commands.logs.subcommands.clear.confirm: 'maybe' is not true or false",
    ),
    ("  logs:\n", "  deploy:\n", "s.yaml:20: commands.deploy: is given twice (first at line 6)"),
    ("min: 1, max: 20", "min: 21, max: 20", "commands.deploy.args.replicas.min: no integer is in [21, 20]"),
    (
        "min: 1, max: 20, default: 2",
        "min: 0.2, max: 0.8",
        "s.yaml:12: commands.deploy.args.replicas.min: no integer is in [0.2, 0.8]",
    ),
    ("min: 0, max: 1,", "min: 1, max: 1,", "s.yaml:13: commands.deploy.args.share.min: no number is in [1, 1)"),
    ("      --wait:", "      --trace:", "s.yaml:6: commands.deploy: '--trace' is there twice"),
    ("    subcommands:\n", "    subcommands: {}\n    args:\n", "s.yaml:22: commands.logs.subcommands: is empty"),
    ("enum: [staging, production]", "enum: [a, b, a]", "s.yaml:11: commands.deploy.args.environment.enum: 'a' is there twice"),
    ("cli_name: ship", "cli_name: [ship", "s.yaml:2: not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "line"), MISTAKES, ids=[line for *_, line in MISTAKES])
def test_a_mistake_is_told_with_its_line(tmp_path, monkeypatch, old, new, line):
    monkeypatch.chdir(tmp_path)
    assert old in SHIP
    (tmp_path / "s.yaml").write_text(SHIP.replace(old, new, 1))
    from pathlib import Path

    with pytest.raises(ConfigError) as error:
        read_schema(Path("s.yaml"))
    assert line in str(error.value)


def test_all_mistakes_at_once(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        SHIP.replace("type: integer", "type: intger").replace("halp", "help").replace("off: --no-wait", "of: --no-wait")
    )
    with pytest.raises(ConfigError) as error:
        read_schema(path)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("text", ["", "- a\n", "cli_name: x\n", "cli_name: x\ncommands: {}\n", "commands: 3\n", "a: &a [*a]\n"])
def test_what_is_no_schema(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError):
        read_schema(tmp_path / "s.yaml")


WRONG = [
    ({"command": "deplo"}, "unknown command 'deplo' (did you mean 'deploy'?)"),
    ({"arguments": {"service": "web"}}, "no 'environment', which deploy needs"),
    ({"arguments": {"service": "web", "environment": "test"}}, "'test' is not one of staging, production"),
    ({"arguments": {"service": "web", "environment": "staging", "replicas": 2.5}}, "2.5 is no integer"),
    ({"arguments": {"service": "web", "environment": "staging", "replicas": True}}, "True is no integer"),
    ({"arguments": {"service": "web", "environment": "staging", "replicas": 0}}, "0 is not in [1, 20]"),
    ({"arguments": {"service": "web", "environment": "staging", "share": 1}}, "1 is not in [0, 1)"),
    ({"arguments": {"service": "web", "environment": "staging", "label": "a=b"}}, "'a=b' is no list"),
    ({"arguments": {"service": "web", "environment": "staging", "window": ["monday"]}}, "is no list of 2 values"),
    (
        {"arguments": {"service": "web", "environment": "staging", "replica": 3}},
        "unknown argument 'replica' (did you mean 'replicas'?)",
    ),
    ({"flags": ["--forse"]}, "unknown flag '--forse' (did you mean '--force'?)"),
    ({"flags": ["--wait", "--no-wait"]}, "flag '--wait' is given twice, or both ways"),
    ({"flags": ["--force"]}, "action 'run', but confidence 0.98 is 'confirm'"),
    ({"confidence": 0.5}, "action 'run', but confidence 0.5 is 'suggest'"),
    ({"confidence": 1.5}, "confidence 1.5 is not in [0, 1]"),
    ({"question": "Which?"}, "'question' in an answer that is run"),
    ({"command": None, "arguments": {}}, "no command to run"),
    ({"note": "x"}, "unknown key 'note'"),
    ({"flags": "--wait"}, "'flags' has the wrong type"),
]


@pytest.mark.parametrize(("changes", "line"), WRONG, ids=[line for _, line in WRONG])
def test_an_answer_that_does_not_hold(ship, changes, line):
    assert not problems(ship, answer())
    assert any(line in problem for problem in problems(ship, answer(**changes)))


def test_a_question_names_what_is_missing(ship):
    asked = answer(
        arguments={"service": "web"}, confidence=0.3, action="ask", missing=["environment"], question="Which environment?"
    )
    assert not problems(ship, asked)
    assert problems(ship, asked | {"missing": []}) == ["no 'environment', and it is not in 'missing'"]
    assert problems(ship, asked | {"question": " "}) == ["no 'question' in an answer that asks"]
    assert text_problems(ship, '{"command": ') == ["no JSON: Input data was truncated"]


def test_thresholds_and_marks_decide_the_action(ship):
    actions = [action_of(ship, answer(confidence=c), Thresholds()) for c in (1, 0.9, 0.89, 0.7, 0.69, 0.4, 0.39, 0)]
    assert actions == ["run", "run", "confirm", "confirm", "suggest", "suggest", "ask", "ask"]
    assert action_of(ship, answer(command="logs clear", arguments={}), Thresholds()) == "confirm"
    assert action_of(ship, answer(), Thresholds(run=0.99)) == "confirm"
    with pytest.raises(ConfigError):
        Thresholds(run=0.5)


def test_the_line_of_an_answer(ship):
    given = {"service": "-x y", "environment": "staging", "label": ["a=1", "b=2"], "window": ["monday", 9], "share": 0.5}
    line = command_line(ship, answer(arguments=given, flags=["--trace", "-v", "-v", "--no-wait"]))
    before = "ship --trace deploy --environment staging --share 0.5 --label a=1 --label b=2 --window monday 9"
    assert line == before + " -v -v --no-wait -- '-x y'"


def test_the_json_schema_allows_what_holds(ship):
    branches = json_schema(ship, Thresholds())["anyOf"]
    assert [branch["properties"]["command"]["const"] for branch in branches] == [*ship.commands, None]
    properties = branches[0]["properties"]["arguments"]["properties"]
    assert properties["environment"] == {"enum": ["staging", "production"]}
    assert properties["share"] == {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    assert properties["label"] == {"type": "array", "items": {"type": "string"}}
    assert branches[0]["properties"]["flags"]["items"]["enum"] == ship.commands["deploy"].flag_names
