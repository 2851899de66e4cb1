"""Places and what is true of them: the values that facts are drawn from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

import names
from wordings import ATTRIBUTES, CURRENCIES, ROLES

_HOURS = ("five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_MINUTES = ("{} o'clock", "quarter past {}", "half past {}", "quarter to {}")
_GOODS = (
    ("willow reed straw rush hazel", "baskets chairs hats mats screens"),
    ("blue red white brown green speckled", "jugs tiles bowls cups plates"),
    ("plum cherry walnut honey ginger apple oat barley almond pear", "cakes tarts biscuits loaves pies"),
    ("woollen linen silk felt striped", "blankets gloves shawls scarves socks"),
    ("copper iron brass tin silver", "lamps kettles bells spoons hinges"),
    ("oak ash elm birch beech", "stools flutes clocks boxes spades"),
)
_SHELTERS = (
    "old upper lower long round north south east west great little stone red white green black",
    "barn tower cellar chapel stable storehouse schoolroom courtyard kitchen hall crypt granary",
)


def _pairs(first: str, second: str) -> list[str]:
    return [f"{a} {b}" for a, b in product(first.split(), second.split())]


VALUES: dict[str, list[str]] = {
    "founded": [str(year) for year in range(1210, 1960)],
    "opens": [minute.format(hour) for hour, minute in product(_HOURS, _MINUTES)],
    "fee": [str(amount) for amount in range(2, 100)],
    "goods": [value for group in _GOODS for value in _pairs(*group)],
    "shelter": [f"the {value}" for value in _pairs(*_SHELTERS)],
}


@dataclass(frozen=True)
class Place:
    """A place, the word for whoever is in charge of it, and its six facts (attribute -> value)."""

    name: str
    role: str
    facts: dict[str, str]

    @property
    def short(self) -> str:
        """The coined word alone: 'Keldwick' for 'Keldwick Mill'."""
        return self.name.split()[0]


def _draw(rng: random.Random, values: list[str], count: int) -> list[str]:
    """`count` values, all different as long as there are enough of them."""
    return [value for _ in range(-(-count // len(values))) for value in rng.sample(values, len(values))][:count]


def found(rng: random.Random, half: names.Half, count: int, role: str = "", currency: str = "") -> list[Place]:
    """`count` new places; `role` and `currency` are drawn for each place unless given."""
    columns = {key: _draw(rng, values, count) for key, values in VALUES.items()}
    columns["keeper"] = names.people(rng, half, count)
    columns["fee"] = [f"{amount} {currency or rng.choice(CURRENCIES)}" for amount in columns["fee"]]
    rows = zip(*(columns[attribute] for attribute in ATTRIBUTES), strict=True)
    return [
        Place(name, role or rng.choice(ROLES), dict(zip(ATTRIBUTES, row, strict=True)))
        for name, row in zip(names.places(rng, half, count), rows, strict=True)
    ]


def fill(wording: str, place: Place, attribute: str, name: str = "", preamble: str = "") -> str:
    """A wording with the place's name (or `name`), role and value filled in; its first letter raised, the
    wording's own lowered after a preamble unless a name begins it."""
    if preamble:
        wording = wording[0].lower() + wording[1:]
    text = preamble + wording.format(place=name or place.name, role=place.role, value=place.facts[attribute])
    return text[0].upper() + text[1:]
