"""Single key presses while a job runs, and a terminal that is always given back as it was."""

from __future__ import annotations

import os
import re
import select
import termios
import tty
from types import TracebackType
from typing import Any, TextIO

SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)


class Keys:
    """Reads keys without Enter. Without a terminal, or in the background, it only waits.

    ``wake`` ends a running :meth:`wait` from another thread.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.terminal: int | None = None
        self._saved: list[Any] = []
        self._ears = self._mouth = -1

    @property
    def open(self) -> bool:
        """Whether it was entered and not yet left."""
        return self._ears >= 0

    def __enter__(self) -> Keys:
        self._ears, self._mouth = os.pipe()
        self.grab()
        return self

    def grab(self) -> None:
        """Takes the terminal, if there is one and this process is in its foreground."""
        terminal = _terminal(self.stream)
        if terminal is not None and _foreground(terminal):
            self._saved = termios.tcgetattr(terminal)
            # TCSANOW: the default would throw away keys that are already typed.
            tty.setcbreak(terminal, termios.TCSANOW)
            self.terminal = terminal

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()
        for end in (self._ears, self._mouth):
            os.close(end)
        self._ears = self._mouth = -1

    def restore(self) -> None:
        """Gives the terminal back; safe to call twice and from a signal handler."""
        terminal, self.terminal = self.terminal, None
        if terminal is not None and _foreground(terminal):
            try:
                termios.tcsetattr(terminal, termios.TCSANOW, self._saved)
            except (OSError, termios.error):  # the window was closed
                return

    def wake(self) -> None:
        """Ends :meth:`wait` now."""
        os.write(self._mouth, b".")

    def wait(self, seconds: float) -> str:
        """The keys pressed within ``seconds``, empty if none; sequences of arrows and function keys are not keys."""
        terminal = self.terminal
        watched = [self._ears] if terminal is None or not _foreground(terminal) else [self._ears, terminal]
        ready, _, _ = select.select(watched, [], [], seconds)
        if terminal is None or terminal not in ready:
            return ""
        try:
            typed = os.read(terminal, 64)
        except OSError:
            typed = b""
        if not typed:  # end of input: asking again would return at once, for ever
            self.restore()
        return SEQUENCE.sub(b"", typed).decode(errors="ignore")


def _terminal(stream: TextIO | None) -> int | None:
    try:
        return stream.fileno() if stream is not None and stream.isatty() else None
    except (OSError, ValueError):
        return None


def _foreground(terminal: int) -> bool:
    """Whether this process may use the terminal: one in the background would be stopped by the kernel."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
