"""Passages for continued pre-training of few documents: a document's entities, and what it says of each and of several at once
(EntiGraph, arXiv 2409.07431, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mlxforge.core.errors import DataError
from mlxforge.core.files import bytes_hash
from mlxforge.knowledge.entities import Entity, entities, known, pattern
from mlxforge.knowledge.gates import REFERENCES, WORDS, Passage, names, numbers, share
from mlxforge.knowledge.jobs import Task
from mlxforge.knowledge.schemas import problem, record, text_of
from mlxforge.knowledge.store import Store

STYLES = {1: "entity", 2: "pair", 3: "triple"}
PROMPTS = {"entity": "expand-entity", "pair": "expand-relation", "triple": "expand-relation"}
SCHEMA = record(passage=text_of(200, 6000, "the passage"))
LISTED = 16  # entities that a model may name for a chunk
NAMED = {"type": "array", "items": text_of(2, 80, "a name or a term"), "minItems": 1, "maxItems": LISTED}
ENTITIES_SCHEMA = record(entities=NAMED)
# Shares of a passage's words and names that its source must have. Chosen, not measured: a rewrite has words of its own.
WORDS_SHARE, NAMES_SHARE = 0.35, 0.75
# A passage of which so large a share stands in its source in runs of so many words teaches no new wording.
RUN, COPIED_SHARE = 8, 0.5
BETWEEN = "\n[…]\n"


@dataclass(frozen=True)
class Part:
    """A chunk of a document, as the store has it."""

    id: int
    index: int
    text: str
    heading: str
    tokens: int


@dataclass(frozen=True)
class Subject:
    """A document that is in force: its chunks in order."""

    path: str
    title: str
    parts: Sequence[Part]

    @property
    def chunks(self) -> list[tuple[int, str, str]]:
        """As :mod:`mlxforge.knowledge.entities` takes them."""
        return [(part.index, part.text, part.heading) for part in self.parts]

    def found(self, most: int) -> list[Entity]:
        """Its entities by their form."""
        return entities(self.chunks, most)

    def confirmed(self, listed: Sequence[str], most: int) -> list[Entity]:
        """Those of a model's that it has."""
        return known(listed, self.chunks, most)


def subjects(store: Store) -> Iterator[Subject]:
    """The documents in force, by path; empty ones left out."""
    for document in store.rows("SELECT DISTINCT document, path, title FROM current ORDER BY path"):
        query = 'SELECT id, "index", text, heading, tokens FROM current WHERE document = ? ORDER BY "index"'
        parts = [Part(**row) for row in store.rows(query, (document["document"],)) if row["text"].strip()]
        if parts:
            yield Subject(document["path"], document["title"], parts)


def digest(documents: Sequence[Subject]) -> str:
    """Changes with the texts, and with the ids by which tasks name them."""
    return bytes_hash(*(bytes_hash(one.path, *(f"{part.id} {part.text}" for part in one.parts)) for one in documents))[:16]


def groups(found: Sequence[Entity], sizes: Sequence[int], most: int) -> list[tuple[Entity, ...]]:
    """Groups of entities, sizes in turn; of a size those first that stand in the most chunks together, then the most named."""
    ranked = [iter(sorted(combinations(found, size), key=_together)) for size in sizes]
    taken: list[tuple[Entity, ...]] = []
    while ranked and len(taken) < most:
        nexts = [next(one, None) for one in ranked]
        ranked = [one for one, group in zip(ranked, nexts, strict=True) if group is not None]
        taken += [group for group in nexts if group is not None]
    return taken[:most]


def _together(group: tuple[Entity, ...]) -> tuple[int, int]:
    shared = frozenset.intersection(*(one.chunks for one in group))
    return -len(shared), -sum(one.times for one in group)


def source_parts(subject: Subject, group: Sequence[Entity], tokens: int) -> list[Part]:
    """The chunks to write from, the one that names the most of the group first; at most so many tokens, but one at least."""
    times = {
        part.index: (
            sum(part.index in one.chunks for one in group),
            sum(dict(one.mentions).get(part.index, 0) for one in group),
        )
        for part in subject.parts
    }
    ranked = sorted(
        (part for part in subject.parts if times[part.index][0]),
        key=lambda part: (*(-n for n in times[part.index]), part.index),
    )
    taken: list[Part] = []
    room = tokens
    for part in ranked:
        if part.tokens <= room or not taken:
            taken.append(part)
            room -= part.tokens
    return taken


def plan(
    documents: Sequence[tuple[Subject, Sequence[Entity]]],
    sizes: Sequence[int],
    most: int,
    tokens: int,
    splits: Mapping[str, str],
) -> list[Task]:
    """A task for each group: the first of every document, then the second of each.

    Args:
        most: groups of a document.
        tokens: of the chunks that a passage is written from.
        splits: the split of each document's path.
    """
    each = [(subject, groups(found, sizes, most)) for subject, found in documents]
    tasks: list[Task] = []
    for turn in range(max((len(made) for _, made in each), default=0)):
        for subject, made in each:
            if turn < len(made):
                group = made[turn]
                parts = source_parts(subject, group, tokens)
                request = {"entities": [one.name for one in group], "chunks": [part.id for part in parts]}
                tasks.append(Task(len(tasks), parts[0].id, STYLES[len(group)], splits[subject.path], request))
    return tasks


def source(store: Store, task: Task) -> Passage:
    """The chunks of a task as one text, in the document's order; what is left out between them is marked."""
    marks = ", ".join("?" * len(task.request["chunks"]))
    rows = store.rows(f'SELECT * FROM current WHERE id IN ({marks}) ORDER BY "index"', task.request["chunks"])
    text, last = "", None
    for row in rows:
        text += ("" if last is None or row["index"] == last + 1 else BETWEEN) + row["text"]
        last = row["index"]
    first = next((row for row in rows if row["id"] == task.chunk), None)
    if first is None:
        raise DataError("a chunk is gone: the documents were changed meanwhile", where=str(store.path), fix="run it again")
    heading = first["heading"] or first["title"]
    return Passage(first["path"], first["title"], first["index"], heading, text, None, (first["start"], first["end"]))


@dataclass(frozen=True)
class Written:
    """A passage that a model wrote about some entities from a source."""

    values: Any
    entities: Sequence[str]
    source: Passage

    @property
    def text(self) -> str:
        """The passage."""
        return str(self.values["passage"]).strip()


def _schema(one: Written) -> str:
    fits = isinstance(one.values, dict) and isinstance(one.values.get("passage"), str)
    return "" if fits else problem(one.values, SCHEMA) or "no passage"


def _length(one: Written) -> str:
    return problem(one.values, SCHEMA)


def _reference(one: Written) -> str:
    found = REFERENCES.search(one.text)
    return f"says '{' '.join(found[0].split())}'" if found else ""


def _subject(one: Written) -> str:
    missing = [name for name in one.entities if not pattern(name).search(one.text)]
    return f"does not name {', '.join(missing)}" if missing else ""


def _grounded(one: Written) -> str:
    if new := numbers(one.text) - one.source.numbers:
        return f"the source has no {', '.join(sorted(new)[:3])}"
    said = names(one.text)
    of_source = one.source.names | {word.lower() for word in WORDS.findall(one.source.text)}
    if said and len(said & of_source) < NAMES_SHARE * len(said):
        return f"the source has no {', '.join(sorted(said - of_source)[:3])}"
    part = share(one.text, one.source.stems)
    return "" if part >= WORDS_SHARE else f"{part:.0%} of its words in the source, not {WORDS_SHARE:.0%}"


def _copied(one: Written) -> str:
    words, source = (WORDS.findall(text.casefold()) for text in (one.text, one.source.text))
    known = {tuple(source[place : place + RUN]) for place in range(len(source) - RUN + 1)}
    runs = [tuple(words[place : place + RUN]) for place in range(len(words) - RUN + 1)]
    part = sum(run in known for run in runs) / len(runs) if runs else 0.0
    return f"{part:.0%} of it stands in its source word for word" if part > COPIED_SHARE else ""


# The order in which they are asked.
ABOUT = {
    "schema": "not the JSON that was asked for",
    "length": "too short or too long",
    "reference": "speaks of a text that a reader does not have",
    "subject": "does not name what it is about",
    "grounded": "the source does not bear it",
    "copied": "the source word for word",
    "duplicate": "says what an earlier passage says",
}
GATES: dict[str, Callable[[Written], str]] = {
    "schema": _schema,
    "length": _length,
    "reference": _reference,
    "subject": _subject,
    "grounded": _grounded,
    "copied": _copied,
}


def refused(one: Written) -> tuple[str, str]:
    """(gate, reason) of the first gate that a passage does not pass; both empty where it passes all."""
    return next(((name, reason) for name, gate in GATES.items() if (reason := gate(one))), ("", ""))


def row(one: Written, task: Task, *, model: str, prompt: str, job: str) -> dict[str, Any]:
    """A passage as a row of data, with where it comes from."""
    text = one.text if not _schema(one) else ""
    return {
        "text": text,
        "source": {
            "document": one.source.document,
            "chunk": one.source.chunk,
            "span": list(one.source.span),
            "style": task.style,
            "entities": list(one.entities),
            "model": model,
            "prompt": prompt,
            "job": job,
        },
    }
