"""Metrics of answers that stand for commands, in the format of ``mlxforge synth commands``, and of JSON in general.

An answer is what a program would decode: the whole text is one JSON value, without a code fence around it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from mlxforge.core.errors import DataError, MissingExtraError
from mlxforge.evals.answers import Terms
from mlxforge.evals.graded import Graded

KEPT = 64  # schemas made ready; the rows of a set mostly share one


class Called(NamedTuple):
    """What an answer says is to be done; ``confidence`` is None where it is no number from 0 to 1."""

    command: str | None
    arguments: dict[str, Any]
    flags: tuple[str, ...]
    confidence: float | None
    action: str


def decoded(text: str) -> Any:
    """The JSON value that a text is.

    Raises:
        ValueError: it is none.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def called(text: str) -> Called | None:
    """The command that an answer stands for; None where it has not the shape of the format."""
    try:
        value = decoded(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or "command" not in value:
        return None
    command, arguments, flags = value["command"], value.get("arguments"), value.get("flags")
    if not isinstance(command, (str, type(None))) or not isinstance(arguments, dict) or not isinstance(flags, list):
        return None
    if not all(isinstance(flag, str) for flag in flags):
        return None
    return Called(command, arguments, tuple(flags), _confidence(value.get("confidence")), str(value.get("action", "")))


def _confidence(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if known else None


def same_command(one: Called, other: Called) -> bool:
    """Whether the full name of the command is the same; null, no command, is one of them."""
    return one.command == other.command


def same_arguments(one: Called, other: Called) -> bool:
    """Whether all names and values are the same; 1 and 1.0 are, 1 and true or "1" are not."""
    return same_value(one.arguments, other.arguments)


def same_flags(one: Called, other: Called) -> bool:
    """Whether the same flags are given, each as often, in any order."""
    return Counter(one.flags) == Counter(other.flags)


def same_action(one: Called, other: Called) -> bool:
    """Whether the same is to be done with it: run, confirm, suggest, ask."""
    return one.action == other.action


def same_call(one: Called, other: Called) -> bool:
    """Command, arguments and flags are all right. The confidence and what is asked do not count."""
    return same_command(one, other) and same_arguments(one, other) and same_flags(one, other)


def same_value(one: Any, other: Any) -> bool:
    """Equality of JSON values."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_value(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    return bool(one == other)


def right(row: Graded, same: Callable[[Called, Called], bool] = same_call) -> bool | None:
    """Whether a row's answer is the same as one of its references; None where there is no answer or no command to be said.

    Raises:
        DataError: a reference is no answer in the format.
    """
    if row.answer is None or not row.references:
        return None
    given = called(row.answer)
    expected = [_reference(text) for text in row.references]
    return given is not None and any(same(given, one) for one in expected)


def _reference(text: str) -> Called:
    found = called(text)
    if found is None:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        raise DataError(f"not an answer of `mlxforge synth commands`: {shown!r}", fix='{"command", "arguments", "flags", …}')
    return found


def match(same: Callable[[Called, Called], bool]) -> Callable[[Graded], Terms]:
    """1 where the answer is the same as a reference in what ``same`` looks at; an answer without the format has 0."""

    def terms(row: Graded) -> Terms:
        found = right(row, same)
        return None if found is None else (float(found),)

    return terms


def json_valid(row: Graded) -> Terms:
    """1 where the whole answer is one JSON value (RFC 8259)."""
    if row.answer is None:
        return None
    try:
        decoded(row.answer)
    except ValueError:
        return (0.0,)
    return (1.0,)


def schema_valid(row: Graded) -> Terms:
    """1 where the answer is JSON and fits the row's schema, by jsonschema; what is no JSON fits none.

    Raises:
        DataError: the schema is none.
    """
    if row.answer is None or row.schema is None:
        return None
    valid = _validator(row.schema)
    try:
        return (float(valid(decoded(row.answer))),)
    except ValueError:
        return (0.0,)


_READY: dict[int, tuple[Mapping[str, Any], Callable[[Any], bool]]] = {}  # by identity: the schema is held with it


def _validator(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    kept = _READY.get(id(schema))
    if kept is None:
        if len(_READY) >= KEPT:
            _READY.clear()
        kept = _READY[id(schema)] = (schema, _made_ready(schema))
    return kept[1]


def _made_ready(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    try:
        from jsonschema import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ImportError as error:
        raise MissingExtraError("jsonschema", "eval", "schema validity") from error
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise DataError(f"not a JSON schema: {error.message}", where=error.json_path, fix="see json-schema.org") from error
    # With a registry of its own nothing is fetched from a network.
    ready = kind(schema, registry=Registry())

    def valid(value: Any) -> bool:
        try:
            return bool(ready.is_valid(value))
        except Unresolvable as error:
            raise DataError(f"the schema points to what is not in it: {error}", fix="put it under $defs") from error

    return valid


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or list: a reference of this kind asks for JSON."""
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False
