"""Spreadsheets, by calamine: a heading a sheet, a line a row."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from mlxforge.knowledge.readers.base import LARGEST, Block, Parsed, Unreadable, heading, need, row, unpacked

CELLS = 10_000_000  # of a sheet's rectangle, which calamine holds in memory whole, empty cells too
PLACE = re.compile(rb'\br="([A-Z]{1,3})([0-9]{1,7})"')
BLOCK = 1 << 20


def read_xlsx(path: Path) -> Parsed:
    """The sheets in order, empty rows left out."""
    if zipfile.is_zipfile(path):
        _check(path)
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


def _check(path: Path) -> None:
    """Raises Unreadable where a sheet would not fit in memory. (Of XLSB and ODS only the size is looked at.)"""
    with unpacked(path, markup=LARGEST) as archive:
        for member in archive.infolist():
            if member.filename.startswith("xl/worksheets/") and member.filename.endswith(".xml"):
                with archive.open(member) as file:
                    rows, columns = _extent(iter(lambda: file.read(BLOCK), b""))
                if rows * columns > CELLS:
                    raise Unreadable(f"a sheet of {rows:,} rows and {columns:,} columns: split it")


def _extent(blocks: Iterable[bytes]) -> tuple[int, int]:
    """(rows, columns) of a sheet's XML."""
    rows = columns = 0
    rest = b""
    for block in blocks:
        found = PLACE.findall(rest + block)
        rows = max([rows, *{int(number) for _, number in found}])
        columns = max([columns, *map(_column, {letters for letters, _ in found})])
        rest = block[-16:]
    return rows, columns


def _column(letters: bytes) -> int:
    """1 of A, 27 of AA."""
    number = 0
    for letter in letters:
        number = 26 * number + letter - 64
    return number


def _cell(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    return value.isoformat() if isinstance(value, (date, time)) else str(value)
