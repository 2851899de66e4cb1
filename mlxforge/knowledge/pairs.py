"""Questions for preference pairs: from the rows of a store or a file, each with the chunk it came from, where that is known."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxforge.core.files import bytes_hash
from mlxforge.core.rows import Chat
from mlxforge.knowledge.gates import WORDS
from mlxforge.knowledge.jobs import Task
from mlxforge.knowledge.sampling import passage
from mlxforge.knowledge.store import Store

NEAR = 0.6  # F1 of words from which on an answer says what the right one says

# Why a question makes no pair.
ABOUT = {
    "cut": "the model's own answer did not end",
    "empty": "an answer is empty",
    "equal": "the model's own answer is the right one",
    "ungrounded": "the grounded answer is not of its passage",
    "tie": "the judge finds neither better",
    "changed": "the judge's verdict changed with the order",
    "unclear": "the judge gave no verdict",
    "own": "the judge prefers the model's own answer",
    "unwritable": "a row cannot hold the pair",
}


@dataclass(frozen=True)
class Asked:
    """A question: the turns before the answer, the right answer, and its provenance.

    ``chunk`` is an id of the store, None where the row came from no chunk of it.
    """

    prompt: Sequence[Mapping[str, str]]
    gold: str
    chunk: int | None
    style: str
    split: str
    source: Mapping[str, Any]


def stored(store: Store) -> Iterator[Asked]:
    """The accepted rows of all jobs for questions and answers."""
    query = (
        "SELECT rows.content, tasks.chunk, tasks.style, tasks.split FROM rows JOIN tasks ON tasks.id = rows.task "
        "JOIN jobs ON jobs.id = tasks.job WHERE jobs.kind = 'qa' AND rows.verdict = 'accepted' "
        "ORDER BY jobs.id, tasks.number, rows.number"
    )
    for row in store.rows(query):
        content = json.loads(row["content"])
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in content["messages"]]
        yield Asked(turns[:-1], turns[-1]["content"], row["chunk"], row["style"], row["split"], content["source"])


def given(store: Store, row: Chat, source: Any, origin: str) -> Asked:
    """A conversation of a file; its chunk is the one that its ``source`` names, if it names one of the store."""
    prompt = [{"role": turn.role, "content": turn.content} for turn in row.messages[:-1]]
    named = source if isinstance(source, dict) else {}
    query = 'SELECT id FROM current WHERE path = ? AND "index" = ?'
    found = store.rows(query, (named.get("document"), named.get("chunk"))) if named else []
    chunk = found[0]["id"] if found else None
    style = str(named.get("style") or "question")
    return Asked(prompt, row.messages[-1].content, chunk, style, "train", named or {"row": origin})


def plan(asked: Iterable[Asked]) -> tuple[list[Task], int]:
    """A task for each question, and how many repeat another."""
    tasks: list[Task] = []
    seen, again = set[str](), 0
    for one in asked:
        key = bytes_hash(json.dumps([list(map(dict, one.prompt)), one.gold]))
        if key in seen:
            again += 1
            continue
        seen.add(key)
        request = {"prompt": list(map(dict, one.prompt)), "gold": one.gold, "source": dict(one.source)}
        tasks.append(Task(len(tasks), one.chunk, one.style, one.split, request))
    return tasks, again


def digest(store: Store, tasks: Sequence[Task]) -> str:
    """Changes with the questions, and with the texts of their chunks."""
    texts = {chunk: passage(store, chunk).text for chunk in {task.chunk for task in tasks} if chunk is not None}
    parts = (
        json.dumps([task.chunk, task.split, dict(task.request)], sort_keys=True) + texts.get(task.chunk or 0, "")
        for task in tasks
    )
    return bytes_hash(*parts)[:16]


def words(text: str) -> list[str]:
    """The words of an answer, for comparing."""
    return WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def says(answer: str, right: str) -> bool:
    """Whether an answer is the right one, or has all its words in one piece."""
    one, other = f" {' '.join(words(answer))} ", f" {' '.join(words(right))} "
    return bool(other.strip()) and other in one


def overlap(answer: str, right: str) -> float:
    """F1 of the words that two answers share, 0 to 1."""
    one, other = Counter(words(answer)), Counter(words(right))
    shared = (one & other).total()
    return 2 * shared / (one.total() + other.total()) if shared else 0.0
