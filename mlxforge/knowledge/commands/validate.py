"""The one format of an answer: what must hold of it, by the schema, and the same as a JSON schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mlxforge.core.errors import did_you_mean
from mlxforge.data.commands import ACTIONS, KEYS, LIMITS, MORE, Action, Thresholds
from mlxforge.knowledge.commands.schema import JSON_TYPES, Argument, Command, Kind, Schema


def asks_first(command: Command | None, flags: Sequence[str]) -> bool:
    """Whether the schema wants a confirmation however sure the answer is."""
    if command is None:
        return False
    return command.confirm or any(flag.confirm and flag.name in flags for flag in command.flags)


def action_of(schema: Schema, answer: Mapping[str, Any], thresholds: Thresholds) -> Action:
    """The more careful of what the confidence and what the schema call for."""
    action = thresholds.action(answer["confidence"])
    if action == "run" and asks_first(schema.commands.get(answer["command"] or ""), answer["flags"]):
        return "confirm"
    return action


def problems(schema: Schema, answer: Any, thresholds: Thresholds | None = None) -> list[str]:
    """What is wrong with an answer, in words; nothing if it holds.

    An answer that is run or confirmed has every required argument. One that suggests or asks names in ``missing`` what it has
    not, or in ``candidates`` the commands that it may have been, and has a ``question``.
    """
    if wrong := _shape(answer):
        return wrong
    found = _command(schema, answer)
    confidence = answer["confidence"]
    if not 0 <= confidence <= 1:
        found.append(f"confidence {confidence!r} is not in [0, 1]")
    wanted = action_of(schema, answer, thresholds or Thresholds())
    if answer["action"] != wanted:
        found.append(f"action '{answer['action']}', but confidence {confidence:g} is '{wanted}'")
    return found + _more(schema, answer)


SHAPES: dict[str, tuple[type, ...]] = {
    "command": (str, type(None)),
    "arguments": (dict,),
    "flags": (list,),
    "confidence": (int, float),
    "action": (str,),
    "missing": (list,),
    "candidates": (list,),
    "question": (str,),
}


def _shape(answer: Any) -> list[str]:
    if not isinstance(answer, dict):
        return ["no JSON object"]
    found = [f"no '{key}'" for key in KEYS if key not in answer]
    found += [f"unknown key '{key}' ({did_you_mean(str(key), SHAPES)})" for key in answer if key not in SHAPES]
    for key, kinds in SHAPES.items():
        if key in answer and (not isinstance(answer[key], kinds) or isinstance(answer[key], bool)):
            found.append(f"'{key}' has the wrong type")
    lists = [key for key in ("flags", "missing", "candidates") if isinstance(answer.get(key), list)]
    return found + [f"'{key}' holds more than text" for key in lists if not all(isinstance(item, str) for item in answer[key])]


def _command(schema: Schema, answer: Mapping[str, Any]) -> list[str]:
    name = answer["command"]
    if name is None:
        return ["arguments or flags without a command"] if answer["arguments"] or answer["flags"] else []
    command = schema.commands.get(name)
    if command is None:
        return [f"unknown command '{name}' ({did_you_mean(name, schema.commands)})"]
    found = []
    for key, value in answer["arguments"].items():
        argument = command.argument(key)
        if argument is None:
            known = [argument.name for argument in command.arguments]
            found.append(f"unknown argument '{key}' ({did_you_mean(key, known) if known else f'{name} has none'})")
        elif wrong := argument.problem(value):
            found.append(f"{key}: {wrong}")
    return found + _flags(command, answer["flags"])


def _flags(command: Command, given: Sequence[str]) -> list[str]:
    found = []
    counts = Counter[str]()
    for name in given:
        flag = command.flag(name)
        if flag is None:
            known = command.flag_names
            found.append(f"unknown flag '{name}' ({did_you_mean(name, known) if known else f'{command.name} has none'})")
        elif not flag.count:
            counts[flag.name] += 1
    return found + [f"flag '{name}' is given twice, or both ways" for name, number in counts.items() if number > 1]


def _more(schema: Schema, answer: Mapping[str, Any]) -> list[str]:
    """What an answer that runs nothing must say, and one that runs must not."""
    command = schema.commands.get(answer["command"]) if answer["command"] is not None else None
    absent = [a.name for a in command.required if a.name not in answer["arguments"]] if command else []
    if answer["action"] in ("run", "confirm"):
        found = [f"'{key}' in an answer that is run" for key in MORE if key in answer]
        found += ["no command to run"] if answer["command"] is None else []
        return found + [f"no '{name}', which {answer['command']} needs" for name in absent]
    found = [] if answer.get("question", "").strip() else ["no 'question' in an answer that asks"]
    missing, candidates = answer.get("missing", []), answer.get("candidates", [])
    found += [f"no '{name}', and it is not in 'missing'" for name in absent if name not in missing]
    known = [argument.name for argument in command.arguments] if command else []
    found += [f"missing: no argument '{name}'" for name in missing if name not in known]
    found += [f"missing: '{name}' is given" for name in missing if name in answer["arguments"]]
    return found + [f"candidates: no command '{name}'" for name in candidates if name not in schema.commands]


def text_problems(schema: Schema, text: str, thresholds: Thresholds | None = None) -> list[str]:
    """The same of a text, as a model writes it."""
    try:
        answer = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        return [f"no JSON: {error}"]
    return problems(schema, answer, thresholds)


def written(answer: Mapping[str, Any]) -> str:
    """An answer as one line of JSON: keys in the order of the format, no spaces."""
    return msgspec.json.encode({key: answer[key] for key in (*KEYS, *MORE) if key in answer}).decode()


def json_schema(schema: Schema, thresholds: Thresholds) -> dict[str, Any]:
    """The format as a JSON schema (2020-12): one branch for each command. A decoder can be held to it."""
    confidence = {"type": "number", "minimum": 0, "maximum": 1}
    branches = [_branch(command, confidence) for command in schema.commands.values()]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"An answer of {schema.cli_name}",
        LIMITS: msgspec.to_builtins(thresholds),
        "anyOf": [*branches, _branch(None, confidence)],
    }


def _branch(command: Command | None, confidence: dict[str, Any]) -> dict[str, Any]:
    arguments = {argument.name: _argument_schema(argument) for argument in (command.arguments if command else ())}
    names = command.flag_names if command else []
    flags = {"type": "array", "items": {"enum": names}} if names else {"type": "array", "maxItems": 0}
    texts = {"type": "array", "items": {"type": "string"}}
    return {
        "type": "object",
        "properties": {
            "command": {"const": command.name if command else None},
            "arguments": {"type": "object", "properties": arguments, "additionalProperties": False},
            "flags": flags,
            "confidence": confidence,
            "action": {"enum": list(ACTIONS if command else ACTIONS[2:])},
            "missing": texts,
            "candidates": texts,
            "question": {"type": "string"},
        },
        "required": list(KEYS),
        "additionalProperties": False,
    }


def _argument_schema(argument: Argument) -> dict[str, Any]:
    parts = [_kind_schema(kind) for kind in argument.kinds]
    one = parts[0] if len(parts) == 1 else {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
    found = {"type": "array", "items": one} if argument.multiple else one
    return {**found, "description": argument.help} if argument.help else found


def _kind_schema(kind: Kind) -> dict[str, Any]:
    if kind.enum:
        return {"enum": list(kind.enum)}
    found: dict[str, Any] = {"type": JSON_TYPES.get(kind.type, "string")}
    if kind.minimum is not None:
        found["exclusiveMinimum" if kind.min_open else "minimum"] = kind.minimum
    if kind.maximum is not None:
        found["exclusiveMaximum" if kind.max_open else "maximum"] = kind.maximum
    return found
