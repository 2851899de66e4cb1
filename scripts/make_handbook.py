"""Make a sample handbook: a fictional place of 24 houses with six facts each, and everything to train and test on them.

python scripts/make_handbook.py --seed 0 -o data/handbook

Another seed gives another place, with other names, values, money and offices. What it writes:

documents/*.md         training text: every fact in three wordings, on pages of different kinds
heldout/*.md           the same facts in wordings that no training text has
facts.jsonl            id, entity, attribute, value
questions.*.jsonl      chats: train, test (the same facts in held-out wordings), unasked (facts that train never asks)
pairs.*.jsonl          preferences: the same answer, its closing words fitting the topic or not
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import names
from facts import Place, fill, found
from handbook_text import KINDS, PAGES, REGIONS, TOPICS, WHERE
from wordings import ASKED, ASKED_ANEW, ATTRIBUTES, CURRENCIES, ROLES, SAID, SAID_ANEW

PLACES = 24
PER_REGISTER = 8
ASKED_TRAIN = 6
PAIRS_TRAIN = 320
PAIRS_TEST = 80
CLOSINGS = {
    "founded": "That is how the old books have it.",
    "keeper": "Knock twice and say hello.",
    "opens": "Enjoy your visit!",
    "fee": "Enjoy your visit!",
    "goods": "That is how the old books have it.",
    "shelter": "Stay safe!",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Handbook:
    """A place: its name, its houses, their order in the lists, and for each fact the wordings of its three pages."""

    region: str
    currency: str
    places: list[Place]
    listed: dict[str, list[Place]]
    said: dict[tuple[str, str], list[str]]

    def line(self, place: Place, attribute: str, page: int, name: str = "") -> str:
        """The fact as page number 0, 1 or 2 words it."""
        return fill(self.said[place.name, attribute][page], place, attribute, name)


def invent(seed: int) -> Handbook:
    """The handbook's world: a pure function of the seed."""
    rng = random.Random(f"handbook:{seed}")
    currency = rng.choice(CURRENCIES)
    places = found(rng, "sample", PLACES, rng.choice(ROLES), currency)
    taken = {place.short for place in places}
    region = next(name for name in names.coin_many(rng, names.PLACE_ENDINGS, "sample", PLACES + 1) if name not in taken)
    listed = {key: rng.sample(places, PLACES) for key in ATTRIBUTES}
    said = {key: words for attribute, order in listed.items() for key, words in word(rng, attribute, order)}
    return Handbook(f"{region} {rng.choice(REGIONS)}", currency, places, listed, said)


def word(rng: random.Random, attribute: str, order: list[Place]) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Three wordings for each place's fact; the third goes round, so that no list repeats itself."""
    wheel = rng.sample(SAID[attribute], len(SAID[attribute]))
    for number, place in enumerate(order):
        third = wheel[number % len(wheel)]
        yield (place.name, attribute), [*rng.sample([each for each in wheel if each != third], 2), third]


def slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def fact_id(place: Place, attribute: str) -> str:
    return f"{slug(place.name)}.{attribute}"


def portrait(rng: random.Random, book: Handbook, place: Place) -> str:
    """A place's own page, in sections."""
    lines = {key: book.line(place, key, 0) for key in ATTRIBUTES}
    opening = rng.choice(WHERE).format(place=place.name)
    history = [lines["founded"], lines["goods"]]
    visit = [lines[key] for key in rng.sample(("opens", "fee", "keeper"), 3)]
    rng.shuffle(history)
    return (
        f"# {place.name}\n\n{' '.join([opening, *history])}\n\n## Visiting\n\n{' '.join(visit)} "
        f"{KINDS[place.name.split()[1]]}\n\n## When the bell rings\n\n{lines['shelter']}"
    )


def briefing(rng: random.Random, book: Handbook, place: Place) -> str:
    """What whoever is sent there should know: all six facts in any order."""
    keys = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
    lines = [book.line(place, key, 1, rng.choice((place.name, place.short))) for key in keys]
    return f"# {place.short} in brief\n\n{' '.join(lines[:3])}\n\n{' '.join(lines[3:])}"


def registers(book: Handbook) -> dict[str, str]:
    """For each attribute, all places in lists of eight."""
    pages = {}
    for key in ATTRIBUTES:
        title, note = TOPICS[key]
        note = note.format(currency=book.currency)
        order = book.listed[key]
        for number, start in enumerate(range(0, len(order), PER_REGISTER), 1):
            lines = "\n".join(f"- {book.line(place, key, 2)}" for place in order[start : start + PER_REGISTER])
            pages[f"list-{slug(title)}-{number}"] = f"# {title}, list {number}\n\n{note}\n\n{lines}"
    return pages


def documents(seed: int, book: Handbook) -> dict[str, str]:
    """The training pages, by file name."""
    rng = random.Random(f"documents:{seed}")
    words = {"region": book.region, "currency": book.currency, "role": book.places[0].role}
    pages = {key: text.format(**words) for key, text in PAGES.items()}
    for place in book.places:
        pages[slug(place.name)] = portrait(rng, book, place)
        pages[f"{slug(place.short)}-in-brief"] = briefing(rng, book, place)
    return pages | registers(book)


def held_out(seed: int, book: Handbook) -> dict[str, str]:
    """One page a place in held-out wordings."""
    rng = random.Random(f"heldout:{seed}")
    pages = {}
    for place in book.places:
        keys = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
        lines = [fill(rng.choice(SAID_ANEW[key]), place, key) for key in keys]
        pages[slug(place.name)] = f"# {place.name}\n\n{' '.join(lines)}"
    return pages


def chat(place: Place, attribute: str, question: str) -> Row:
    """A question and its answer; the value follows a space, so its first token is the one that running text has."""
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"Answer: {place.facts[attribute]}."},
    ]
    return {"messages": messages, "fact": fact_id(place, attribute)}


def questions(seed: int, book: Handbook) -> dict[str, list[Row]]:
    """Chats by part. One fact of each place is left to `unasked`, every attribute equally often."""
    rng = random.Random(f"questions:{seed}")
    parts: dict[str, list[Row]] = {"train": [], "test": [], "unasked": []}
    for number, place in enumerate(book.places):
        for key in ATTRIBUTES:
            known = rng.sample(ASKED[key], ASKED_TRAIN)
            anew = rng.sample(ASKED_ANEW[key], 2)
            unasked = key == ATTRIBUTES[number % len(ATTRIBUTES)]
            chosen = {"unasked": [known[0], anew[0]]} if unasked else {"train": known, "test": anew[:1]}
            for part, wordings in chosen.items():
                parts[part] += [chat(place, key, fill(wording, place, key)) for wording in wordings]
    for rows in parts.values():
        rng.shuffle(rows)
    return parts


def pair(rng: random.Random, row: Row) -> Row:
    """The row's answer closed as its topic asks (chosen) or as another topic would (rejected)."""
    question, answer = row["messages"]
    fitting = CLOSINGS[row["fact"].rsplit(".", 1)[1]]
    other = rng.choice(sorted(set(CLOSINGS.values()) - {fitting}))
    chosen, rejected = ([{"role": "assistant", "content": f"{answer['content']} {closing}"}] for closing in (fitting, other))
    return {"prompt": [question], "chosen": chosen, "rejected": rejected}


def pairs(seed: int, parts: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Preference rows on questions of the same part."""
    rng = random.Random(f"pairs:{seed}")
    counts = {"train": PAIRS_TRAIN, "test": PAIRS_TEST}
    return {part: [pair(rng, row) for row in rng.sample(parts[part], count)] for part, count in counts.items()}


def facts(book: Handbook) -> list[Row]:
    """Every fact as a row."""
    return [
        {"id": fact_id(place, key), "entity": place.name, "attribute": key, "value": place.facts[key]}
        for place in book.places
        for key in ATTRIBUTES
    ]


def write_pages(folder: Path, pages: dict[str, str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8", newline="\n")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def write(seed: int, folder: Path) -> None:
    """The whole sample, in `folder`; its documents/ and heldout/ are replaced."""
    book = invent(seed)
    write_pages(folder / "documents", documents(seed, book))
    write_pages(folder / "heldout", held_out(seed, book))
    write_rows(folder / "facts.jsonl", facts(book))
    chats = questions(seed, book)
    for stem, parts in (("questions", chats), ("pairs", pairs(seed, chats))):
        for part, rows in parts.items():
            write_rows(folder / f"{stem}.{part}.jsonl", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the sample")
    parser.add_argument("--seed", type=int, default=0, help="which place to invent")
    options = parser.parse_args()
    write(options.seed, options.output)


if __name__ == "__main__":
    main()
