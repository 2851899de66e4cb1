"""Retrieval: the same questions closed book, with the passages that a search finds, and with the passage they were made from.

The three are sets of their own, ``questions``, ``questions+rag`` and ``questions+gold``, so that one table shows what a model
knows, what a search adds, and what a perfect search would.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import ConfigError, DataError
from mlxforge.core.events import Emit, Noted, Progress, ignore
from mlxforge.core.files import bytes_hash
from mlxforge.core.rows import Chat, Message, Messages
from mlxforge.knowledge.sampling import passage
from mlxforge.knowledge.search import search
from mlxforge.knowledge.store import Store, open_store
from mlxforge.knowledge.templates import Prompt, read_prompt
from mlxforge.runs.eval_sets import EvalRow, EvalSet

FOUND, GOLD = "+rag", "+gold"
ASKING = ("chat", "choices")  # kinds of sets that ask something
NOTHING = "No passage was found."


@dataclass(frozen=True)
class Book:
    """A knowledge base to look into.

    Attributes:
        top_k: passages in a prompt, the best first.
        prompt: how they and the question are put to a model.
    """

    store: Store
    top_k: int
    prompt: Prompt

    def find(self, question: str) -> list[int]:
        """The chunks that match a question best by BM25, one of its words being enough; none where it has no word."""
        try:
            hits = search(self.store, question, limit=self.top_k, any_word=True).hits
        except DataError:  # no word in it
            return []
        return [int(hit["id"]) for hit in hits]

    def gold(self, source: Any) -> int | None:
        """The chunk that a row names as what it was made from; None where it names none of this knowledge base."""
        named = source if isinstance(source, dict) else {}
        query = 'SELECT id FROM current WHERE path = ? AND "index" = ?'
        values = (named.get("document"), named.get("chunk"))
        if not isinstance(values[0], str) or not isinstance(values[1], int):
            return None
        found = self.store.rows(query, values)
        return int(found[0]["id"]) if found else None

    def opened(self, row: EvalRow, chunks: Sequence[int], hit: float | None) -> EvalRow:
        """The row with these passages in its prompt."""
        found = [passage(self.store, chunk) for chunk in chunks]
        told = "\n\n".join(f"[{number}] {one.heading}\n{one.text.strip()}" for number, one in enumerate(found, 1))
        context = tuple({"document": one.document, "chunk": one.chunk, "text": one.text.strip()} for one in found)
        assert row.prompt is not None
        messages = _put(row.prompt.messages, self.prompt, told or NOTHING)
        return replace(row, prompt=Chat(messages, row.prompt.tools), context=context, hit=hit)


def conditions(
    sets: Iterable[EvalSet],
    path: Path,
    *,
    top_k: int = 3,
    prompts: Path | None = None,
    notes: list[str] | None = None,
    emit: Emit = ignore,
) -> Iterator[EvalSet]:
    """Each set, and behind those that ask questions the same with passages: found ones, and the one each row names.

    Args:
        path: a knowledge base.
        prompts: a folder whose ``rag.md`` replaces the shipped one.
        notes: is given what the report's reader should know.

    Raises:
        ConfigError: a prompt that cannot be used, a set of the same name, or no set that asks anything.
        DataError: no knowledge base, or one without chunks.
    """
    prompt = read_prompt("rag", prompts)
    every = list(sets)
    asking = [one for one in every if one.kind in ASKING]
    if not asking:
        fix = "give conversations or choices: --data FILE"
        raise ConfigError("no set asks questions, so there is nothing to look up", where="--rag", fix=fix)
    if twice := {one.name + end for one in asking for end in (FOUND, GOLD)} & {one.name for one in every}:
        raise ConfigError(f"a set is named '{min(twice)}' already", where="--data", fix="give it another name: NAME=FILE")
    with open_store(path, readonly=True) as store:
        if not store.rows("SELECT 1 FROM current LIMIT 1"):
            raise DataError("no chunks", where=str(path), fix=f"add documents: mlxforge ingest PATH --into {path}")
        book = Book(store, top_k, prompt)
        for one in every:
            yield one
            if one in asking:
                yield from _opened(one, book, [] if notes is None else notes, emit)


def _opened(one: EvalSet, book: Book, notes: list[str], emit: Emit) -> Iterator[EvalSet]:
    """The set with what is found, and with what its rows name."""
    golds = [book.gold(row.source) for row in one.rows]
    rows = list[EvalRow]()
    for row, gold in zip(one.rows, golds, strict=True):
        assert row.prompt is not None
        found = book.find(_question(row.prompt.messages))
        rows.append(book.opened(row, found, None if gold is None else float(gold in found)))
        emit(Progress(task=f"{one.name}: searching {book.store.path.name}", done=len(rows), total=len(golds), unit="questions"))
    yield _named(one, FOUND, rows)
    known = [(row, gold) for row, gold in zip(one.rows, golds, strict=True) if gold is not None]
    if len(known) < len(golds):
        told = f"{len(known):,} of {len(golds):,} rows name their passage in {book.store.path.name} ('source' of a row)"
        left = f"'{one.name}{GOLD}' is left out" if not known else f"'{one.name}{GOLD}' and the hits are of these"
        notes.append(f"{one.name}: {told}: {left}")
        emit(Noted(message=notes[-1]))
    if known:
        opened = (book.opened(row, [gold], None) for row, gold in known)
        yield _named(one, GOLD, [replace(row, index=place) for place, row in enumerate(opened)])


def _named(one: EvalSet, end: str, rows: Sequence[EvalRow]) -> EvalSet:
    """A set of other rows under its own name."""
    content = bytes_hash(one.info.hash, end, *(row.key for row in rows))
    return EvalSet(msgspec.structs.replace(one.info, name=one.name + end, rows=len(rows), hash=content), tuple(rows))


def _last(messages: Messages) -> int:
    """The place of the last turn of the user; of the last turn where there is none."""
    return max((place for place, turn in enumerate(messages) if turn.role == "user"), default=len(messages) - 1)


def _question(messages: Messages) -> str:
    return messages[_last(messages)].content


def _put(messages: Messages, prompt: Prompt, passages: str) -> Messages:
    """The turns with passages put to the question; what the prompt tells the system stands below what the row tells it."""
    place = _last(messages)
    *system, user = prompt.filled({"passages": passages, "question": messages[place].content})
    turns = list(messages)
    turns[place] = msgspec.structs.replace(turns[place], content=user["content"])
    if system:
        own = turns[0].role == "system"
        told = "\n\n".join([*([turns.pop(0).content] if own else []), system[0]["content"]])
        turns.insert(0, Message("system", told))
    return tuple(turns)
