"""Files read by worker processes: in the order in which they were given, a few ahead of the one that is used."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from array import array
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from mlxforge.knowledge.readers import READERS
from mlxforge.knowledge.reading import Outcome, Recipe, Task, counter, take
from mlxforge.knowledge.store import Chunk

BATCH_BYTES, BATCH_FILES = 1 << 20, 64
AHEAD = 4  # batches a worker that wait to be written
ALONE = 4 << 20  # bytes of plain files that are read at once, without a worker
LIGHT = {"plain", "rows"}  # readers that are Python alone and cannot take the process with them
CRASHED = "broken: its reader crashed over it"

Batch = Sequence[Task]


def outcomes(tasks: Sequence[Task], given: Recipe) -> Iterator[Outcome]:
    """What becomes of each file, in order."""
    sizes = [_size(task) for task in tasks]
    light = all(READERS[task.path.suffix.lower()].module in LIGHT for task in tasks)
    if light and sum(sizes) <= ALONE:
        for task in tasks:
            yield take(task, given)
        return
    batches = deque(_batches(tasks, sizes))
    while batches:
        broken = yield from _parallel(batches, given)
        yield from _one_by_one(broken, given)


def _parallel(batches: deque[Batch], given: Recipe) -> Generator[Outcome, None, list[Task]]:
    """Takes batches off as their outcomes come; returns the files that waited when a worker crashed, none where all is well."""
    workers = min(cores(), len(batches))
    pool, waiting = _pool(workers, given), deque[tuple[Batch, Future[list[Packed]]]]()
    try:
        while batches or waiting:
            while batches and len(waiting) < AHEAD * workers:
                waiting.append((batches[0], pool.submit(take_all, batches[0], given)))
                batches.popleft()
            found = waiting[0][1].result()
            waiting.popleft()
            yield from map(_unpacked, found)
    except BrokenProcessPool:
        return [task for batch, _ in waiting for task in batch]
    finally:
        _stop(pool)
    return []


def _one_by_one(tasks: Iterable[Task], given: Recipe) -> Iterator[Outcome]:
    """Files of which one crashed its reader; a worker is replaced where it happens again."""
    pool = _pool(1, given)  # starts no process before it is given work
    try:
        for task in tasks:
            try:
                found = pool.submit(take, task, given).result()
            except BrokenProcessPool:
                _stop(pool)
                pool = _pool(1, given)
                found = Outcome(task, error=CRASHED)
            yield found
    finally:
        _stop(pool)


class Packed(NamedTuple):
    """An outcome on its way between processes, its chunks apart: a text and columns of numbers are passed ten times as fast as
    the chunks themselves."""

    outcome: Outcome
    text: str = ""
    headings: tuple[str, ...] = ()
    tokens: Sequence[int] = ()
    pages: Sequence[int] = ()  # 0 where there are none
    ends: Sequence[int] = ()
    overlaps: Sequence[int] = ()


def take_all(tasks: Batch, given: Recipe) -> list[Packed]:
    """A batch, in a worker."""
    return [packed(take(task, given)) for task in tasks]


def packed(outcome: Outcome) -> Packed:
    """For passing on; the chunks of a file are all of its text, in order."""
    if not outcome.chunks:
        return Packed(outcome)
    texts, tokens, headings, pages, _, ends, overlaps = zip(*outcome.chunks, strict=True)
    numbers = (array("q", column) for column in (tokens, (page or 0 for page in pages), ends, overlaps))
    return Packed(replace(outcome, chunks=[]), "".join(texts), headings, *numbers)


def _unpacked(given: Packed) -> Outcome:
    start = 0
    for heading, tokens, page, end, overlap in zip(*given[2:], strict=True):
        text = given.text[start:end]
        given.outcome.chunks.append(Chunk(text, tokens, heading, page or None, start, end, overlap))
        start = end
    return given.outcome


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(task: Task) -> int:
    try:
        return task.path.stat().st_size
    except OSError:
        return 0


def _batches(tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Batch]:
    batch: list[Task] = []
    total = 0
    for task, size in zip(tasks, sizes, strict=True):
        if batch and (total + size > BATCH_BYTES or len(batch) == BATCH_FILES):
            yield batch
            batch, total = [], 0
        batch.append(task)
        total += size
    if batch:
        yield batch


def _pool(workers: int, given: Recipe) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare, (given,))


def _prepare(given: Recipe) -> None:
    """Begins a worker: it leaves Ctrl-C to the one who writes, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["RAYON_NUM_THREADS"] = "1"  # each core has a worker already
    threading.Thread(target=_watch, daemon=True).start()
    counter(given.model)


def _watch() -> None:
    """Ends this process when its parent is gone, however it went: nobody would empty the queue."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _stop(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        with suppress(ValueError):
            process.terminate()
