"""Which listener a command gets: the dashboard on a terminal, plain lines elsewhere, never anything but the result on stdout
where ``--json`` asks for it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal, TextIO

from mlxforge.core.events import Control, Emit, fan_out

Mode = Literal["auto", "plain", "quiet", "json"]


def can_draw(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can show the dashboard."""
    if not stream.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


@contextmanager
def listeners(mode: Mode, control: Control | None = None, *, watching: bool = False, trackers: bool = True) -> Iterator[Emit]:
    """The ``emit`` for one run, and the terminal as it was at the end, however it ends.

    ``auto`` draws on a terminal and else writes lines; ``plain`` writes lines to stdout; ``quiet`` only warnings and the
    summary; ``json`` writes lines to stderr, so that stdout has nothing but the command's own result object. ``control`` takes
    the wishes of keys; ``watching`` is for a run of another process: only leaving is offered. ``trackers`` follow the runs that
    ask for them in their settings.
    """
    with _screen(mode, control, watching) as screen:
        if watching or not trackers:
            yield screen
            return
        from mlxforge.ui.trackers import Trackers

        with Trackers(screen) as following:
            yield fan_out([screen, following])


@contextmanager
def _screen(mode: Mode, control: Control | None, watching: bool) -> Iterator[Emit]:
    """The dashboard, or lines."""
    if mode == "auto" and can_draw(sys.stdout):
        from mlxforge.ui.dashboard import Dashboard

        dashboard = Dashboard(control, watching=watching)
        if control is not None:
            control.cleanups.append(dashboard.close)
        with terminal_signals(dashboard.close, dashboard.suspend), dashboard:
            yield dashboard
        return
    from mlxforge.ui.plain import Plain, Quiet

    stream = sys.stderr if mode == "json" else sys.stdout
    lines = Quiet(stream) if mode == "quiet" else Plain(stream)
    try:
        yield lines
    except KeyboardInterrupt:
        lines.state.left = watching
        raise
    finally:
        lines.close()


@contextmanager
def terminal_signals(close: Callable[[], None], suspend: Callable[[], None]) -> Iterator[None]:
    """A polite kill, a closed window and Ctrl-Z give the terminal back too. What somebody else handles is left to them."""

    def end(number: int, _: FrameType | None) -> None:
        close()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def stop(_: int, __: FrameType | None) -> None:
        suspend()

    wanted = {signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGTSTP: stop}
    if threading.current_thread() is not threading.main_thread():
        wanted = {}
    taken = {number: handler for number, handler in wanted.items() if signal.getsignal(number) is signal.SIG_DFL}
    for number, handler in taken.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in taken.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, signal.SIG_DFL)
