"""Spreadsheets, by calamine: a heading a sheet, a line a row."""

from __future__ import annotations

from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from mlxforge.knowledge.readers.base import Block, Parsed, Unreadable, heading, need, row


def read_xlsx(path: Path) -> Parsed:
    """The sheets in order, empty rows left out."""
    calamine = need("python_calamine", "python-calamine", "reading spreadsheets")
    try:
        book = calamine.CalamineWorkbook.from_path(str(path))
    except calamine.PasswordError as error:
        raise Unreadable("encrypted: it needs a password") from error
    blocks: list[Block] = []
    with book:
        for name in book.sheet_names:
            if lines := [line for cells in book.get_sheet_by_name(name).to_python() if (line := row([*map(_cell, cells)]))]:
                blocks += [heading(name, 1), Block("\n".join(lines) + "\n\n")]
    return Parsed(blocks)


def _cell(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    return value.isoformat() if isinstance(value, (date, time)) else str(value)
