"""Jobs in the store: a plan of tasks, each finished once with all its rows; a kill loses and doubles nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxforge.core.files import bytes_hash
from mlxforge.knowledge.store import Store, now

ACCEPTED, REJECTED = "accepted", "rejected"
REDECIDED = "duplicate"  # the gate whose verdicts depend on the other rows


@dataclass(frozen=True)
class Task:
    """One call to make. ``number`` is its place in the plan, ``chunk`` an id of the store; ``id`` is given by the store.

    ``request`` is what else it needs, as JSON.
    """

    number: int
    chunk: int | None
    style: str
    split: str
    request: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0


@dataclass(frozen=True)
class Row:
    """A row that a task made: as it is written, and where a gate refused it, which and why."""

    content: Mapping[str, Any]
    gate: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Usage:
    """What calls came to; ``cost`` in US dollars."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
        )


def job_key(kind: str, settings: Mapping[str, Any]) -> str:
    """What a job is known by: 16 hexadecimal digits."""
    return bytes_hash(kind, json.dumps(settings, sort_keys=True))[:16]


def known_job(store: Store, kind: str, settings: Mapping[str, Any]) -> bool:
    """Whether such a job was begun."""
    return bool(store.rows("SELECT 1 FROM jobs WHERE key = ?", (job_key(kind, settings),)))


class Job:
    """A job of a store. Use :meth:`open`."""

    def __init__(self, store: Store, number: int, key: str) -> None:
        self.store, self.id, self.key = store, number, key

    @classmethod
    def open(cls, store: Store, kind: str, settings: Mapping[str, Any], plan: Iterable[Task], *, redo: bool = False) -> Job:
        """The job of these settings: begun, or gone on with. Tasks of the plan that it lacks are added.

        Args:
            settings: all that decides the rows; other settings are another job.
            plan: with equal settings always the same tasks, or more of them at its end.
            redo: forget what was made.
        """
        key = job_key(kind, settings)
        with store.writing() as connection:
            if redo:
                connection.execute("DELETE FROM jobs WHERE key = ?", (key,))
            connection.execute(
                "INSERT OR IGNORE INTO jobs (kind, key, settings, begun) VALUES (?, ?, ?, ?)",
                (kind, key, json.dumps(settings), now()),
            )
            number = int(connection.execute("SELECT id FROM jobs WHERE key = ?", (key,)).fetchone()[0])
            connection.executemany(
                "INSERT OR IGNORE INTO tasks (job, number, chunk, style, split, request) VALUES (?, ?, ?, ?, ?, ?)",
                ((number, t.number, t.chunk, t.style, t.split, json.dumps(t.request)) for t in plan),
            )
        return cls(store, number, key)

    def open_tasks(self, below: int | None = None) -> Iterator[Task]:
        """The tasks to do, in the order of the plan; only those of a number less than ``below``.

        Each is asked for as it is needed: a task that failed meanwhile is not met again.
        """
        last = -1
        while True:
            found = self.store.rows(
                "SELECT id, number, chunk, style, split, request FROM tasks "
                "WHERE job = ? AND state = 'open' AND number > ? AND number < ? ORDER BY number LIMIT 100",
                (self.id, last, 2**62 if below is None else below),
            )
            if not found:
                return
            for row in found:
                last = row["number"]
                yield Task(**{**row, "request": json.loads(row["request"])})

    def finish(self, task: Task, rows: Sequence[Row], usage: Usage) -> bool:
        """Keeps a task's rows, in one transaction; False where another process was first, whose rows stay."""
        with self.store.writing() as connection:
            self._account(usage)
            changed = connection.execute(
                "UPDATE tasks SET state = 'done', error = NULL, attempts = attempts + 1 WHERE id = ? AND state = 'open'",
                (task.id,),
            ).rowcount
            if changed:
                connection.executemany(
                    "INSERT INTO rows (task, number, content, verdict, gate, reason) VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        (
                            task.id,
                            number,
                            _text(row.content),
                            REJECTED if row.gate else ACCEPTED,
                            row.gate or None,
                            row.reason or None,
                        )
                        for number, row in enumerate(rows)
                    ),
                )
        return bool(changed)

    def fail(self, task: Task, error: str, usage: Usage, *, later: bool = False) -> None:
        """Notes why a task made nothing; with ``later`` it stays open."""
        with self.store.writing() as connection:
            self._account(usage)
            connection.execute(
                "UPDATE tasks SET state = ?, error = ?, attempts = attempts + 1 WHERE id = ? AND state = 'open'",
                ("open" if later else "failed", error, task.id),
            )

    def _account(self, usage: Usage) -> None:
        self.store.connection.execute(
            "UPDATE jobs SET calls = calls + ?, prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?, "
            "cost = cost + ? WHERE id = ?",
            (usage.calls, usage.prompt_tokens, usage.completion_tokens, usage.cost, self.id),
        )

    def end(self) -> None:
        """Notes that nothing is left to do."""
        with self.store.writing() as connection:
            connection.execute("UPDATE jobs SET ended = ? WHERE id = ?", (now(), self.id))

    @property
    def usage(self) -> Usage:
        """What the job has come to, over all its runs."""
        (row,) = self.store.rows("SELECT calls, prompt_tokens, completion_tokens, cost FROM jobs WHERE id = ?", (self.id,))
        return Usage(**row)

    @property
    def states(self) -> Counter[str]:
        """Tasks by state: open, done, failed."""
        found = self.store.rows("SELECT state, count(*) AS number FROM tasks WHERE job = ? GROUP BY state", (self.id,))
        return Counter({row["state"]: row["number"] for row in found})

    @property
    def errors(self) -> Counter[str]:
        """Tasks that failed, by why."""
        query = "SELECT error, count(*) AS number FROM tasks WHERE job = ? AND state = 'failed' GROUP BY error"
        return Counter({row["error"]: row["number"] for row in self.store.rows(query, (self.id,))})

    def rows(self, verdict: str = ACCEPTED) -> Iterator[dict[str, Any]]:
        """Rows in the order of the plan: ``id``, ``content`` (decoded), ``split``, ``style``, ``gate``, ``reason``."""
        query = (
            "SELECT rows.id, content, split, style, gate, reason FROM rows JOIN tasks ON tasks.id = rows.task "
            "WHERE job = ? AND verdict = ? ORDER BY tasks.number, rows.number"
        )
        for row in self.store.stream(query, (self.id, verdict)):
            yield {**row, "content": json.loads(row["content"])}

    def counts(self) -> list[dict[str, Any]]:
        """Numbers of rows by ``split``, ``style``, ``verdict`` and ``gate``."""
        query = (
            "SELECT split, style, verdict, gate, count(*) AS number FROM rows JOIN tasks ON tasks.id = rows.task "
            "WHERE job = ? GROUP BY split, style, verdict, gate ORDER BY min(tasks.number)"
        )
        return self.store.rows(query, (self.id,))

    def decide_duplicates(self, duplicate: Callable[[Mapping[str, Any]], str]) -> None:
        """Decides again which rows say what an earlier one says, in the order of the plan: so the verdicts do not depend on
        which answers came first.

        Args:
            duplicate: called with the content of each row that passed all other gates; why it is one, or nothing.
        """
        query = (
            "SELECT rows.id, content, gate FROM rows JOIN tasks ON tasks.id = rows.task WHERE job = ? "
            "AND (verdict = ? OR gate = ?) AND reviewed IS NULL ORDER BY tasks.number, rows.number"
        )
        verdicts = [
            (REJECTED if reason else ACCEPTED, REDECIDED if reason else None, reason or None, row["id"])
            for row in self.store.stream(query, (self.id, ACCEPTED, REDECIDED))
            for reason in [duplicate(json.loads(row["content"]))]
        ]
        with self.store.writing() as connection:
            connection.executemany("UPDATE rows SET verdict = ?, gate = ?, reason = ? WHERE id = ?", verdicts)


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False)
