"""Coined names for places and people, split in two halves that never meet.

A name is a stem and an ending ("Bram" + "holt"). Its checksum says which half it belongs to: `base` names may occur
in the base model's corpus, `sample` names in sample handbooks. So whatever a handbook's seed, the base model
has never seen its names, although it has seen names of the same shape.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import Literal

Half = Literal["base", "sample"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONSETS = _words("B Br C Cl Cr D Dr F Fl G Gr H K L M N P Pr R S St T Th Tr V W")
RIMES = _words(
    "al am and ard arn ask ax eck eld elm end erk ess est ill im ind ing isk ock old olm ond orn osk oth ulm urn usk"
)
REFUSED = frozenset(_words("Cess Cock Crock Dim Dress Fill Kill Mess Nim Pess Press Still Stock Tard Will"))
PLACE_ENDINGS = _words(
    "beck bridge by cliff combe dale den fell firth ford gate grove haven holt hope lea low mere moor mouth "
    "ness ridge shaw stead stow thorpe thwaite water wick worth"
)
SURNAME_ENDINGS = _words(
    "acre ander bairn bolt croft dyke erby field garth hurst ister kin lock man nard over quist rell "
    "sley smith son tree vane wain wright yard"
)
FIRST_NAMES = _words(
    "Ada Agnes Albert Alice Anna Arthur Beatrice Bernard Cecil Clara Conrad Cora Daniel Dora Edgar Edith Edmund Elsie "
    "Emil Enid Ernest Esther Felix Flora Frances Frank George Greta Harold Hattie Helen Henry Hilda Hugo Ida Irene "
    "Isaac Ivy Jacob Jane Josef Judith Karl Laura Leonard Lydia Mabel Martin Miriam Nora Olive Oscar Otto Paul Pearl "
    "Rosa Rufus Ruth Silas Simon Sylvia Theodore Thomas Ursula Vera Victor Walter Wilfred Winifred"
)
KINDS = _words(
    "Archive Bakery Bathhouse Boatyard Bookshop Brewery Dairy Farm Ferry Forge Foundry Gallery Garden Glasshouse Hostel "
    "Inn Laundry Library Lighthouse Mill Museum Nursery Observatory Orchard Pottery Quarry School Sawmill Tannery "
    "Theatre Vineyard Workshop"
)


def half_of(name: str) -> Half:
    """The half a coined name belongs to; a fixed function of its letters."""
    return "sample" if zlib.crc32(name.encode()) % 2 else "base"


def _stem(rng: random.Random) -> str:
    """A syllable that reads well: no other word, and not an r on both sides of the vowel."""
    while True:
        onset, rime = rng.choice(ONSETS), rng.choice(RIMES)
        if onset + rime not in REFUSED and not ("r" in onset[1:] and "r" in rime):
            return onset + rime


def coin(rng: random.Random, endings: Sequence[str], half: Half) -> tuple[str, str]:
    """A stem and an ending that joined are a name of the wanted half."""
    while True:
        stem, ending = _stem(rng), rng.choice(endings)
        if half_of(stem + ending) == half and stem[-1] != ending[0]:
            return stem, ending


def coin_many(rng: random.Random, endings: Sequence[str], half: Half, count: int) -> list[str]:
    """`count` names with stems all different, so that no two are easily confused."""
    names: dict[str, str] = {}
    while len(names) < count:
        stem, ending = coin(rng, endings, half)
        names.setdefault(stem, stem + ending)
    return list(names.values())


def places(rng: random.Random, half: Half, count: int) -> list[str]:
    """Place names of two words, such as 'Keldwick Mill'; kinds repeat only when there are more places than kinds."""
    kinds = [kind for _ in range(count // len(KINDS) + 1) for kind in rng.sample(KINDS, len(KINDS))]
    return [f"{name} {kind}" for name, kind in zip(coin_many(rng, PLACE_ENDINGS, half, count), kinds, strict=False)]


def people(rng: random.Random, half: Half, count: int) -> list[str]:
    """Full names whose surnames are coined."""
    surnames = coin_many(rng, SURNAME_ENDINGS, half, count)
    firsts = [first for _ in range(count // len(FIRST_NAMES) + 1) for first in rng.sample(FIRST_NAMES, len(FIRST_NAMES))]
    return [f"{first} {surname}" for first, surname in zip(firsts, surnames, strict=False)]
