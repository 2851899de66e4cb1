"""Progress of commands that are no run: a bar a task on a terminal, lines elsewhere; both on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mlxforge.core.events import Emit, Event, Progress
from mlxforge.ui import units
from mlxforge.ui.listen import can_draw, listeners


@contextmanager
def bars() -> Iterator[Emit]:
    """The ``emit`` of one command; on a terminal the bars are gone at the end, notes and warnings stay."""
    with listeners("json") as lines:
        if not can_draw(sys.stderr):
            yield lines
            return
        from rich.console import Console
        from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeRemainingColumn())
        shown = Bars(*columns, console=Console(stderr=True), transient=True)
        tasks: dict[str, TaskID] = {}

        def emit(event: Event) -> None:
            if not isinstance(event, Progress):
                shown.stop()  # the bars go, so that a line does not end up behind one of them
                lines(event)
                shown.start()
                return
            total, amount = event.total or None, _amount(event)
            if event.task not in tasks:
                tasks[event.task] = shown.add_task(event.task, total=total, amount=amount)
            shown.update(tasks[event.task], completed=event.done, total=total, amount=amount)

        with shown:
            yield emit


def _amount(event: Progress) -> str:
    """``1.2 GB / 3.4 GB``, ``12 / 40 rows``."""
    write = units.size if event.unit == "B" else units.count
    of = f" / {write(event.total)}" if event.total else ""
    return f"{write(event.done)}{of}" + ("" if event.unit in ("", "B") else f" {event.unit}")
