"""The part of JSON Schema that answers are asked in: checked, measured, and written as tags for servers that know no schema.

Keywords: ``type`` (object, array, string, integer, number, boolean), ``properties``, ``required``, ``items``, ``minItems``,
``maxItems``, ``minLength``, ``maxLength``, ``minimum``, ``maximum``, ``enum``, ``description``. Objects take no other keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
}  # fmt: skip
# A character under way: \uXXXX of both halves of a pair.
UNDER_WAY = 12
NUMBER = 24  # bytes


def text_of(least: int, most: int, about: str = "") -> dict[str, Any]:
    """A string of ``least`` to ``most`` characters."""
    return {"type": "string", "minLength": least, "maxLength": most, **({"description": about} if about else {})}


def record(**fields: Schema) -> dict[str, Any]:
    """An object with these keys, all of them required."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


# Not every server that keeps to a schema knows these.
BOUNDS = ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum")


def shape(schema: Schema) -> dict[str, Any]:
    """A schema without its bounds."""
    kept: dict[str, Any] = {key: value for key, value in schema.items() if key not in BOUNDS}
    if "properties" in kept:
        kept["properties"] = {key: shape(inner) for key, inner in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = shape(kept["items"])
    return kept


def problem(value: Any, schema: Schema, place: str = "") -> str:
    """What keeps a value from fitting its schema, in words; empty where it fits."""
    return next(_problems(value, schema, place), "")


def _problems(value: Any, schema: Schema, place: str) -> Iterator[str]:
    where = f"{place}: " if place else ""
    if "enum" in schema:
        if value not in schema["enum"]:
            yield f"{where}none of {', '.join(map(str, schema['enum']))}"
        return
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{where}{_named(value)}, not {kind}"
        return
    yield from _bounds(value, schema, where)
    if kind == "object":
        yield from (f"{where}no key '{key}'" for key in schema.get("required", ()) if key not in value)
        yield from (f"{where}unknown key '{key}'" for key in value if key not in schema["properties"])
        for key, inner in schema["properties"].items():
            if key in value:
                yield from _problems(value[key], inner, f"{place}.{key}" if place else key)
    elif kind == "array":
        for number, item in enumerate(value, 1):
            yield from _problems(item, schema["items"], f"{place} {number}".strip())


def _bounds(value: Any, schema: Schema, where: str) -> Iterator[str]:
    size: float
    if isinstance(value, (str, list)):
        kind = ("Length", "characters") if isinstance(value, str) else ("Items", "items")
        size, low, high = len(value), schema.get(f"min{kind[0]}", 0), schema.get(f"max{kind[0]}")
        unit = f" {kind[1]}"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        size, low, high, unit = value, schema.get("minimum", value), schema.get("maximum"), ""
    else:
        return
    if size < low or (high is not None and size > high):
        yield f"{where}{size}{unit}, not {low} to {'any' if high is None else high}"


def _named(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    return next((name for name, kind in TYPES.items() if isinstance(value, kind)), "unknown")


def enough(schema: Schema) -> int:
    """Bytes that suffice to end an answer from wherever it is: what ends it soonest is taken at every point."""
    return UNDER_WAY + _least(schema)


def _least(schema: Schema) -> int:
    if "enum" in schema:
        return max(len(json.dumps(value)) for value in schema["enum"])
    kind = schema["type"]
    if kind == "object":  # a key that may be missing can be under way
        return 2 + sum(len(json.dumps(key)) + 4 + _least(inner) for key, inner in schema["properties"].items())
    if kind == "array":
        return 2 + max(1, schema.get("minItems", 0)) * (_least(schema["items"]) + 2)
    return 2 + int(schema.get("minLength", 0)) if kind == "string" else NUMBER


TAGS = "Write the answer in tags, each on a line of its own, and nothing outside them. For several, repeat the tag."


def tag_instructions(schema: Schema) -> str:
    """What a model is told where its server knows no schema."""
    return f"{TAGS}\n\n" + "\n".join(_form(key, inner) for key, inner in schema["properties"].items())


def _form(name: str, schema: Schema) -> str:
    if schema.get("type") == "object":
        return f"<{name}>\n" + "\n".join(_form(key, inner) for key, inner in schema["properties"].items()) + f"\n</{name}>"
    if schema.get("type") == "array":
        return _form(name, schema["items"])
    return f"<{name}>{_wanted(schema)}</{name}>"


def _wanted(schema: Schema) -> str:
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    return str(schema.get("description") or schema["type"])


def from_tags(text: str, schema: Schema) -> Any:
    """The value that a tagged answer holds; None where there is none. What is missing stays missing: :func:`problem` tells."""
    return _value(THOUGHTS.sub("", text), schema)


def _inside(text: str, name: str) -> list[str]:
    return [part.strip() for part in re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL | re.IGNORECASE)]


def _value(text: str, schema: Schema) -> Any:
    kind = schema.get("type", "string")
    if kind == "object":
        values = {key: _field(text, key, inner) for key, inner in schema["properties"].items()}
        return {key: value for key, value in values.items() if value is not None} or None
    if kind in ("integer", "number", "boolean"):
        try:
            return json.loads(text.strip().lower())
        except ValueError:
            return text
    return next((value for value in schema.get("enum", ()) if str(value).lower() == text.strip().lower()), text)


def _field(text: str, key: str, schema: Schema) -> Any:
    parts = _inside(text, key)
    if schema.get("type") == "array":
        return [_value(part, schema["items"]) for part in parts]
    return _value(parts[0], schema) if parts else None


FENCE = re.compile(r"\A\s*```\w*\n(.*?)\n?```\s*\Z", re.DOTALL)
THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


def from_json(text: str) -> Any:
    """The JSON value that an answer is, with its thoughts and a code fence around it taken off; None where it is none."""
    text = THOUGHTS.sub("", text)
    fenced = FENCE.match(text)
    try:
        return json.loads(fenced[1] if fenced else text)
    except ValueError:
        return None
