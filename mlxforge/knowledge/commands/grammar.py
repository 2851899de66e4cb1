"""Rows by a grammar: requests in many wordings, and the answer that each of them has. No model is needed.

A row depends on the schema, the seed, its number and the rows before it, on nothing else: the same seed gives the same rows,
and more rows begin with the fewer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, Any

import msgspec

from mlxforge.core.errors import ConfigError
from mlxforge.core.settings import Settings
from mlxforge.core.settings import help as described
from mlxforge.data.commands import Thresholds
from mlxforge.data.splits import group_key
from mlxforge.knowledge.commands.cases import CASES, Case
from mlxforge.knowledge.commands.lexicon import Lexicon
from mlxforge.knowledge.commands.schema import Schema
from mlxforge.knowledge.commands.sentence import Maker
from mlxforge.knowledge.commands.validate import problems, written

ATTEMPTS = 60  # draws for one row before it is given up
TEMPLATE_USES = 3  # rows that may differ in their values alone


class Shares(Settings):
    """How many rows of each case, as parts of their sum: 60 % clear requests, 20 % that need an answer, 20 % that are noise."""

    plain: Annotated[float, described("clear requests that say everything", ge=0)] = 40
    context: Annotated[float, described("clear requests that need a value of their context", ge=0)] = 20
    clarification: Annotated[float, described("requests that fit several commands, or leave a value open", ge=0)] = 10
    incomplete: Annotated[float, described("requests without something that the command needs", ge=0)] = 10
    off_topic: Annotated[float, described("requests that are nothing for this program", ge=0)] = 10
    typo: Annotated[float, described("clear requests with slips of the keyboard", ge=0)] = 10


@dataclass(frozen=True)
class Row:
    """One row. ``template`` is the instruction without its values; ``order`` names arguments and flags as they are said."""

    number: int
    case: str
    form: str
    instruction: str
    context: dict[str, Any] | None
    answer: dict[str, Any]
    template: str
    values: tuple[str, ...]
    order: tuple[str, ...]
    model: str | None = None  # who put it into other words, and by which prompt
    prompt: str | None = None

    @property
    def group(self) -> int:
        """A hash of what must not be in two splits: the command with its values; where there are none, the wording."""
        arguments = self.answer["arguments"]
        return group_key([self.answer["command"], arguments, "" if arguments else self.template])

    def values_of(self, seed: int) -> dict[str, Any]:
        """The row as it is written: instruction, context, output, source."""
        source = {
            "style": self.case,
            "formality": self.form,
            "row": self.number,
            "seed": seed,
            "model": self.model,
            "prompt": self.prompt,
        }
        return {"instruction": self.instruction, "context": self.context, "output": written(self.answer), "source": source}


def same(instruction: str) -> str:
    """What two instructions have in common that nobody would tell apart."""
    return " ".join(re.sub(r"[^\w/.=-]+", " ", instruction.casefold()).split()).rstrip(".")


@dataclass
class Grammar:
    """Draws rows. ``short`` counts the rows that could not be had, by case: the schema has too few distinct requests."""

    schema: Schema
    seed: int = 0
    shares: Shares = field(default_factory=Shares)
    thresholds: Thresholds = field(default_factory=Thresholds)
    short: Counter[str] = field(default_factory=Counter)
    impossible: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.maker = Maker(self.schema, Lexicon.of(self.schema), self.thresholds)
        wanted = {name: float(share) for name, share in msgspec.structs.asdict(self.shares).items() if share > 0}
        if not math.isfinite(sum(wanted.values())):
            raise ConfigError("a share is not finite", where="shares", fix="such as typo=30")
        if not wanted:
            raise ConfigError("all shares are 0", where="shares", fix="give one case a share")
        self.cases = {name: case for name in wanted if (case := CASES[name]).possible(self.maker)}
        self.impossible = [name for name in wanted if name not in self.cases]
        if not self.cases:
            names = ", ".join(self.impossible)
            raise ConfigError(f"the schema has no request of the case {names}", where="shares", fix="give another case a share")
        total = sum(wanted[name] for name in self.cases)
        self.weights = {name: wanted[name] / total for name in self.cases}

    def rows(self, count: int) -> Iterator[Row]:
        """The first ``count`` rows; those that could not be had are counted in ``short`` and left out."""
        seen: set[str] = set()
        templates = Counter[str]()
        turns = Counter[str]()
        for number, name in zip(range(count), self.schedule(), strict=False):
            row = self.row(number, name, turns[name], seen, templates)
            turns[name] += 1
            if row is None:
                self.short[name] += 1
                continue
            seen.add(same(row.instruction))
            templates[row.template] += 1
            yield row

    def schedule(self) -> Iterator[str]:
        """The case of each row: after any number of rows every case has its share, one row more or less."""
        owed = dict.fromkeys(self.weights, 0.0)
        while True:
            for name, weight in self.weights.items():
                owed[name] += weight
            name = max(owed, key=lambda name: round(owed[name], 9))
            owed[name] -= 1
            yield name

    def row(self, number: int, name: str, turn: int, seen: set[str], templates: Mapping[str, int]) -> Row | None:
        """One row that no earlier row says, or None if none was found."""
        case: Case = self.cases[name]
        for attempt in range(ATTEMPTS):
            random = Random(f"{self.seed}:{number}:{attempt}")
            draft = case.draw(self.maker, random, turn)
            if draft is None:
                continue
            text = draft.text
            template = draft.template
            if same(text) in seen or templates.get(template, 0) >= TEMPLATE_USES:
                continue
            row = Row(number, name, draft.form, text, draft.context, draft.answer, template, draft.said, draft.order)
            if wrong := problems(self.schema, row.answer, self.thresholds):
                raise AssertionError(f"row {number} ({name}): {wrong} in {row.answer}")
            return row
        return None
