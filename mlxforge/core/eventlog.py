"""The event log ``events.jsonl``: one event a line, written as it happens, read again by ``watch``, ``plot`` and resume."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec

from mlxforge.core import events as ev
from mlxforge.core.files import disk_errors

EVENTS = "events.jsonl"
BLOCK = 1 << 20
POLL = 0.1


class EventLog:
    """A listener that appends every event. Each line is in the kernel's hands before the next step: a killed run keeps it.

    Opening drops a last line that a killed process left half written.

    Raises:
        MlxforgeError: the disk is full or the folder forbidden; the log then ends with its last whole line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the run
            self.truncate(_whole(path))

    def __call__(self, event: ev.Event) -> None:
        line = ev.encode(event) + b"\n"
        with disk_errors(self.path):
            begin = self._file.tell()
            if self._file.write(line) != len(line):
                self._file.truncate(begin)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def offset(self) -> int:
        """Length in bytes; a checkpoint keeps it."""
        return self._file.tell()

    def truncate(self, offset: int) -> None:
        """Forgets what was written after ``offset``: a resumed run tells it again."""
        with disk_errors(self.path):
            self._file.truncate(offset)
            self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Closes the file; safe to call twice."""
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _whole(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - BLOCK)
            file.seek(begin)
            cut = file.read(end - begin).rfind(b"\n")
            if cut >= 0:
                return begin + cut + 1
            end = begin
    return 0


def parse(line: bytes) -> ev.Event | None:
    """The event of a line; None for a damaged line or an event of a later version."""
    try:
        return ev.decode(line)
    except msgspec.ValidationError:
        return _with_nan(line)
    except msgspec.DecodeError:
        return None


KINDS = {kind.__name__: kind for kind in ev.AnyEvent.__args__}  # type: ignore[attr-defined]


def _with_nan(line: bytes) -> ev.Event | None:
    """JSON has no NaN: a loss that was not finite is written as null and read as NaN."""
    try:
        values: dict[str, Any] = msgspec.json.decode(line)
        kind = KINDS[values.pop("event")]
        floats = {field.name for field in msgspec.structs.fields(kind) if field.type is float}
        values.update({name: float("nan") for name in floats if name in values and values[name] is None})
        if isinstance(metrics := values.get("metrics"), dict):
            values["metrics"] = {name: float("nan") if value is None else value for name, value in metrics.items()}
        return msgspec.convert({**values, "event": kind.__name__}, kind)
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return None


def replay(
    path: Path,
    follow: bool = False,
    *,
    alive: Callable[[], bool] | None = None,
    poll: float = POLL,
    ends: type[ev.Event] | None = ev.RunEnded,
) -> Iterator[ev.Event]:
    """The events of a log, in order; damaged lines are passed over, a half-written last one is waited for or left.

    ``follow`` goes on with what is appended until an event of the kind ``ends`` is the last one or ``alive`` says no (it tells
    whether the run's process still lives; by default it is trusted to). A log that shrinks, because its run was resumed from a
    checkpoint, is read on from its new end.
    """
    while not path.exists():
        if not follow or (alive is not None and not alive()):
            return
        time.sleep(poll)
    ended = last = False
    rest = b""
    with open(path, "rb") as file:
        while True:
            if block := file.read(BLOCK):
                *lines, rest = (rest + block).split(b"\n")
                for event in filter(None, map(parse, lines)):
                    ended = ends is not None and isinstance(event, ends)
                    yield event
                continue
            if last or ended or not follow:
                return
            # Asked before the last look, so that nothing is missed that was written before the process ended.
            last = alive is not None and not alive()
            if not last:
                time.sleep(poll)
                rest = _shrunk(file, rest)


def _shrunk(file: BinaryIO, rest: bytes) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size >= file.tell():
        return rest
    file.seek(size)
    return b""
