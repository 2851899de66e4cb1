"""The live dashboard: hears events, draws a few times a second, turns keys into wishes, gives the terminal back.

``__call__`` only appends to a queue (well under a microsecond), so that training is never held up; one thread folds the
queue into the state, draws and reads the keys.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mlxforge.core import eventlog
from mlxforge.core import events as ev
from mlxforge.ui import panels
from mlxforge.ui.frame import KEYS, Frame
from mlxforge.ui.keys import Keys
from mlxforge.ui.state import State
from mlxforge.ui.summary import summary

PAUSE = 0.25
WATCH_KEYS = (("q", "leave"),)
WISHES = {"s": "save", "e": "evaluate", "q": "finish"}


class Overheard(io.TextIOBase):
    """Stands in for stdout or stderr while the dashboard has the screen; what others print is shown after it."""

    def __init__(self, kept: deque[str]) -> None:
        self.kept, self._begun = kept, ""

    def write(self, text: str) -> int:
        """Keeps whole lines; of a line redrawn with carriage returns, the last state."""
        *lines, self._begun = (self._begun + text).split("\n")
        self.kept.extend(line.rsplit("\r", 1)[-1] for line in lines)
        self._begun = self._begun.rsplit("\r", 1)[-1]
        return len(text)


def recall(resumed: ev.RunStarted) -> State:
    """What a resumed run said in its earlier sittings, from its own log: its curves begin at its beginning."""
    past = State()
    for event in eventlog.replay(Path(resumed.path) / eventlog.EVENTS):
        if event.time >= resumed.time:
            break
        past.hear(event)
    return past


class Dashboard:
    """A listener and a context manager. ``watching`` leaves ``q`` alone: it sets ``control.finish`` for the watcher."""

    def __init__(
        self,
        control: ev.Control | None = None,
        *,
        console: Console | None = None,
        keyboard: TextIO | None = None,
        watching: bool = False,
    ) -> None:
        self.control = control or ev.Control()
        self.console = console or Console(file=sys.stdout, highlight=False)
        self.state = State()
        self.keys = Keys(keyboard if keyboard is not None else sys.stdin)
        self.frame = Frame(self.state)
        self.frame.above = panels.stages(self.control.stages) if self.control.stages else None
        self.watching = watching
        self._offered: Sequence[tuple[str, str]] = WATCH_KEYS if watching else KEYS
        self._queue: deque[ev.Event] = deque()
        self._overheard: deque[str] = deque(maxlen=200)
        self._live = Live(
            self.frame, console=self.console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._streams: tuple[TextIO, TextIO] | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._drawn: tuple[object, ...] = ()

    def __call__(self, event: ev.Event) -> None:
        """Takes an event for the next picture."""
        self._queue.append(event)

    def __enter__(self) -> Dashboard:
        self.keys.__enter__()
        try:
            self.frame.keys = self._offered if self.keys.terminal is not None else ()
            self._live.start()
            self._overhear()
            self._thread = threading.Thread(target=self._loop, name="dashboard", daemon=True)
            self._thread.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        self.drain()
        self.state.left = self.watching and (self.control.finish or kind is KeyboardInterrupt)
        self.finale()

    def close(self) -> None:
        """Stops drawing and gives the terminal back; safe to call twice and from a signal handler."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            self.keys.wake()
            if thread is not threading.current_thread():
                thread.join(timeout=2)
        if self._streams is not None:
            sys.stdout, sys.stderr = self._streams
            self._streams = None
        self._live.stop()
        if self.keys.open:
            self.keys.__exit__(None, None, None)

    def suspend(self) -> None:
        """Ctrl-Z: gives the terminal to the shell, and takes it again when the job comes back to the foreground."""
        self._live.stop()
        self.keys.restore()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.keys.grab()
        self._live.start()
        self._drawn = ()

    def drain(self) -> None:
        """Folds what was heard since into the state."""
        while self._queue:
            event = self._queue.popleft()
            if isinstance(event, ev.RunStarted) and event.step and not self.state.started:
                self.state = self.frame.state = self.state.after(recall(event))
            self.state.hear(event)

    def _overhear(self) -> None:
        self._streams = (sys.stdout, sys.stderr)
        sys.stdout = sys.stderr = Overheard(self._overheard)

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                self.drain()
                self._draw()
                self._press(self.keys.wait(PAUSE))
            except Exception as error:  # a picture must never end a training run
                self.frame.message = f"the dashboard stumbled: {type(error).__name__}: {error}"
                self._stop.wait(PAUSE)

    def _draw(self) -> None:
        """Draws if anything changed, and once a second for the clock."""
        self._wishes()
        drawn = (self.state.heard, len(self.state.tasks), tuple(self.console.size), self.frame.message, int(time.time()))
        if drawn != self._drawn:
            self._drawn = drawn
            self._live.refresh()

    def _press(self, typed: str) -> None:
        for key in typed:
            wish = WISHES.get(key.lower())
            if wish and (wish == "finish" or not self.watching):
                setattr(self.control, wish, True)

    def _wishes(self) -> None:
        """The message at the right of the keys: what was asked for and is not done yet."""
        control = self.control
        if self.watching or self.state.ended:
            self.frame.message = ""
        elif control.finish:
            again = "; Ctrl-C again stops now" if control.interrupted else ""
            self.frame.message = f"finishing after this step{again}"
        else:
            asked = [word for wish, word in ((control.save, "saving"), (control.evaluate, "evaluating")) if wish]
            self.frame.message = " and ".join(asked) + " after this step" if asked else ""

    def finale(self) -> None:
        """What stays on the screen: the curve, what came out, and what others printed meanwhile."""
        for one in self._overheard:
            self.console.print(Text(one, style="dim"), soft_wrap=True)
        if len(self.state.loss) > 1 and self.console.width >= 40:
            width = min(self.console.width, 100)
            self.console.print(panels.header(self.state, width))
            self.console.print(panels.legend(self.state, width))
            self.console.print(panels.loss_plot(self.state, width, 12), "\n")
        if text := summary(self.state):
            self.console.print(text, end="", soft_wrap=True)


def show_ended(log: Path, console: Console | None = None) -> None:
    """The last picture of a run that no longer goes on, and its summary, left on the screen."""
    console = console or Console(highlight=False)
    state = State(now=lambda: 0.0)
    for event in eventlog.replay(log):
        state.hear(event)
    if state.ended is None:
        state.status = "stopped"
    text = summary(state)
    room = max(12, min(30, console.height - len(text.wrap(console, console.width)) - 1))
    console.print(Frame(state, height=room))
    # The terminal wraps by itself, so that a long command can be copied whole.
    console.print(text, end="", soft_wrap=True)
