"""Rows of data as text: a paragraph a row, a line a key."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.knowledge.readers.base import Block, Parsed, Unreadable, decoded, heading, paragraph, row

TITLES = ("title", "name", "heading")
TEXTS = ("text", "content", "body")


def read_csv(path: Path) -> Parsed:
    """A table: its rows as lines, ``a | b | c``."""
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    text = decoded(path.read_bytes())
    try:
        lines = [row(cells) for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)]
    except csv.Error as error:
        raise Unreadable(f"broken CSV: {error}") from error
    return Parsed([Block("".join(f"{line}\n" for line in lines if line))])


def read_jsonl(path: Path) -> Parsed:
    """An object, or any value, a line."""
    values: list[Any] = []
    decode = msgspec.json.Decoder().decode
    for number, line in enumerate(decoded(path.read_bytes()).split("\n"), 1):
        if line.strip():
            try:
                values.append(decode(line))
            except (msgspec.DecodeError, RecursionError) as error:
                raise Unreadable(f"broken JSON in line {number}: {error}") from error
    return Parsed(_blocks(values))


def read_json(path: Path) -> Parsed:
    """An array's values are rows; anything else is one."""
    try:
        value = msgspec.json.decode(decoded(path.read_bytes()))
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(f"broken JSON: {error}") from error
    return Parsed(_blocks(value if isinstance(value, list) else [value]))


def _blocks(values: Iterable[Any]) -> list[Block]:
    blocks: list[Block] = []
    for value in values:
        if isinstance(value, dict):
            blocks += _object(value)
        elif text := _plain(value):
            blocks.append(paragraph(text))
    return blocks


def _object(values: dict[str, Any]) -> list[Block]:
    """A title as a heading, the text as it is, every other key as a line ``key: value``."""
    title = next((key for key in TITLES if isinstance(values.get(key), str) and values[key].strip()), None)
    text = next((key for key in TEXTS if isinstance(values.get(key), str) and values[key].strip()), None)
    others = [f"{key}: {_plain(value)}" for key, value in values.items() if key not in (title, text) and _plain(value)]
    blocks = [heading(values[title], 1)] if title else []
    if others:
        blocks.append(paragraph("\n".join(others)))
    return blocks + ([paragraph(values[text])] if text else [])


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
