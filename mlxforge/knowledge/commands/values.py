"""Values for arguments, drawn as people would give them: of the right type, within bounds, and sayable in a sentence."""

from __future__ import annotations

import math
import re
from random import Random
from typing import Any

from mlxforge.knowledge.commands import wordings
from mlxforge.knowledge.commands.schema import Argument, Kind

WHOLE = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 25, 32, 40, 50, 64, 75, 80, 96, 100, 128, 150, 200, 250, 256, 300, 400, 500]
WHOLE += [512, 750, 1000, 1024, 1500, 2000, 2048, 3000, 4096, 5000, 8000, 8192, 10000, 16384]
BROKEN = [
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.08,
    0.1,
    0.15,
    0.2,
    0.25,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.75,
    0.8,
    0.85,
    0.9,
]
BROKEN += [0.95, 0.99, 1.5, 2.5]
SEVERAL = (1, 1, 2, 2, 3)  # how many values of an argument that may be given several times
NAMED_FOR = {"dir": "folder", "directory": "folder", "folder": "folder", "file": "file"}
NEAR = 8  # numbers are drawn within this factor of the default, where there are such


def draw(argument: Argument, random: Random) -> Any:
    """A value of an argument: a list where it may be given several times or holds several values."""
    if not argument.multiple:
        return draw_item(argument, random)
    found: list[Any] = []
    for _ in range(random.choice(SEVERAL)):
        item = draw_item(argument, random)
        if item not in found:
            found.append(item)
    return found


def draw_item(argument: Argument, random: Random) -> Any:
    """One of the values."""
    if argument.values:
        return random.choice(argument.values)
    parts = [_one(argument, kind, random) for kind in argument.kinds]
    return parts if len(parts) > 1 else parts[0]


def _one(argument: Argument, kind: Kind, random: Random) -> Any:
    if kind.enum:
        return random.choice(kind.enum)
    if kind.type == "boolean":
        return random.random() < 0.5
    if kind.type in ("integer", "number"):
        return _number(argument, kind, random)
    if kind.type in ("file", "folder", "path"):
        return _path(argument, NAMED_FOR.get(argument.words.rpartition(" ")[2], kind.type), random)
    return _text(argument, random)


def _number(argument: Argument, kind: Kind, random: Random) -> float:
    last = argument.words.split()[-1:]
    if kind.type == "integer" and last in (["seed"], ["port"]):
        number = random.randint(0, 9999) if last == ["seed"] else random.randint(1024, 9999)
        if not kind.problem(number):
            return number
    default = argument.default if isinstance(argument.default, (int, float)) else None
    pool: list[float] = [*WHOLE] if kind.type == "integer" else [*BROKEN, *WHOLE[:8]]
    if default and kind.type == "number":
        pool += [float(f"{default * factor:.3g}") for factor in (0.2, 0.5, 2, 5)]
    inside = [number for number in pool if not kind.problem(number)]
    near = [number for number in inside if default and abs(default) / NEAR <= number <= abs(default) * NEAR]
    if choice := near or inside:
        return random.choice(choice)
    return _between(kind, random)


def _between(kind: Kind, random: Random) -> float:
    """A number within bounds that none of the usual ones meets."""
    low = kind.minimum if kind.minimum is not None else (kind.maximum or 0) - 100
    high = kind.maximum if kind.maximum is not None else low + 100
    if kind.type == "integer":
        first = math.floor(low) + 1 if kind.min_open else math.ceil(low)
        last = math.ceil(high) - 1 if kind.max_open else math.floor(high)
        return random.randint(first, max(first, last))
    if low == high:
        return low
    while kind.problem(number := low + (high - low) * random.randint(1, 99) / 100):
        continue
    return number


def _path(argument: Argument, kind: str, random: Random) -> str:
    folder = "/".join(random.sample(wordings.FOLDERS, random.choice((1, 1, 2))))
    stem = random.choice(wordings.STEMS)
    if random.random() < 0.5:
        stem += random.choice("-_") + random.choice(["2023", "2024", "old", "new", "a", "b", "v2", "final", "en", "draft"])
    if kind == "folder" or (kind == "path" and random.random() < 0.4):
        return f"{folder}/{stem}/" if random.random() < 0.5 else f"{folder}/"
    name = stem + _suffix(argument, random)
    return name if random.random() < 0.5 else f"{folder}/{name}"


def _suffix(argument: Argument, random: Random) -> str:
    words = re.findall(r"[a-z]+", f"{argument.name} {argument.metavar} {argument.help}".lower())
    return next((wordings.SUFFIXES[word] for word in words if word in wordings.SUFFIXES), random.choice(wordings.ANY_SUFFIX))


def _text(argument: Argument, random: Random) -> str:
    if "=" in argument.metavar:
        return f"{random.choice(wordings.FIRST)}={random.choice(wordings.SECOND)}"
    last = (argument.words.split() or [""])[-1].lower()
    pool = wordings.VALUES.get(last) or wordings.VALUES.get(argument.metavar.strip(".").lower())
    if pool and random.random() < 0.8:
        return random.choice(pool)
    number = random.choice(["", "", f"-{random.randint(2, 99)}"])
    return f"{random.choice(wordings.FIRST)}-{random.choice(wordings.SECOND)}{number}"
