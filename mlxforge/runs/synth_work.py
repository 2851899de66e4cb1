"""The work on a job: its open tasks asked of a provider, each kept with its rows as soon as it is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mlxforge.core.events import Emit, Progress
from mlxforge.knowledge.asked import Reply, Request
from mlxforge.knowledge.jobs import Job, Row, Task, Usage
from mlxforge.knowledge.providers import Provider


def work(
    job: Job,
    asked: Provider,
    request: Callable[[Task], Request],
    rows: Callable[[Task, str], Sequence[Row]],
    name: str,
    emit: Emit,
) -> None:
    """Asks all open tasks.

    Args:
        request: what a task asks for; its key is the task's number.
        rows: the rows of an answer.
        name: what the progress is called.

    Raises:
        RunFailed: the provider does not work, or the next call could cost too much.
    """
    states = job.states
    total, done = states.total(), states.total() - states["open"]
    begun: dict[str, Task] = {}

    def requests() -> Iterator[Request]:
        for task in job.open_tasks():
            begun[str(task.number)] = task
            yield request(task)

    if done == total:
        return
    emit(Progress(task=name, done=done, total=total, unit="tasks"))
    for reply in asked.complete(requests()):
        task = begun.pop(reply.key)
        if reply.error:
            job.fail(task, reply.error, used(reply), later=reply.later)
        else:
            job.finish(task, rows(task, reply.text), used(reply))
        done += 1
        emit(Progress(task=name, done=done, total=total, unit="tasks"))


def used(reply: Reply) -> Usage:
    """What one call came to."""
    return Usage(1, reply.prompt_tokens, reply.completion_tokens, reply.cost)
