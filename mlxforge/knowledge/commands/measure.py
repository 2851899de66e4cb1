"""How different the rows are, in numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mlxforge.knowledge.commands.grammar import Row, same
from mlxforge.knowledge.commands.schema import Schema

WORD = re.compile(r"\w+|[^\w\s]")


def distinct(texts: Iterable[str], length: int) -> float:
    """Distinct n-grams of words over all n-grams (arXiv 1510.03055), n-grams within a text; 0 where there are none."""
    grams = Counter[tuple[str, ...]]()
    for text in texts:
        words = WORD.findall(text.casefold())
        grams.update(zip(*(words[start:] for start in range(length)), strict=False))
    return len(grams) / grams.total() if grams else 0.0


def diversity(schema: Schema, rows: Sequence[Row], instructions: Sequence[str]) -> dict[str, Any]:
    """Figures of the rows as they are written: shares are of 1.

    ``equal``: rows that repeat an instruction. ``templates``: different sentences without their values, and how often the most
    used one is used. ``reordered``: of the rows that say two arguments or flags or more, those in another order than the
    schema's.
    """
    counted = Counter(map(same, instructions))
    templates = Counter(row.template for row in rows)
    orders = [moved for row in rows if (moved := _moved(schema, row)) is not None]
    commands = Counter(row.answer["command"] for row in rows if row.answer["command"] is not None)
    return {
        "equal": _share(len(instructions) - len(counted), len(instructions)),
        **{f"distinct_{length}": round(distinct(instructions, length), 4) for length in (1, 2, 3)},
        "templates": len(templates),
        "template_uses": max(templates.values(), default=0),
        "reordered": _share(sum(orders), len(orders)),
        "commands": len(commands),
        "commands_in_schema": len(schema.commands),
        "formality": dict(Counter(row.form for row in rows).most_common()),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _moved(schema: Schema, row: Row) -> bool | None:
    """Whether a row says things in another order than the schema; None where there are fewer than two."""
    command = schema.commands.get(row.answer["command"] or "")
    if command is None or len(row.order) < 2:
        return None
    places = {name: n for n, name in enumerate([*(a.name for a in command.arguments), *command.flag_names])}
    order = [places[name] for name in row.order]
    return order != sorted(order)
