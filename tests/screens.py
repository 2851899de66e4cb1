"""A made-up run, as events; and a command in a pseudo-terminal with a screen to look at."""

from __future__ import annotations

import fcntl
import math
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlxforge.core import events as ev

RESULT: dict[str, Any] = {
    "run": "demo",
    "objective": "cpt",
    "status": "finished",
    "steps": 100,
    "tokens": 400_000,
    "trained_tokens": 395_000,
    "train_loss": 1.8,
    "before": {"loss": 4.2, "perplexity": 66.7, "bpb": 1.81},
    "valid": {"loss": 2.0, "perplexity": 7.39, "bpb": 0.86},
    "retention": {"before": {"loss": 3.0, "perplexity": 20.1, "bpb": 1.2}, "after": None},
    "best": {"step": 90, "loss": 1.99},
    "task": {"answers": {"before": 0.02, "after": 0.41}},
    "tokens_per_second": 2831.2,
    "peak_memory_bytes": 1_620_000_000,
}


def make_run(
    steps: int = 100, *, path: str = "runs/demo", metrics: bool = False, end: bool = True, first: int = 1
) -> list[ev.Event]:
    """The events of one run, 0.2 seconds a step, evaluated ten times; from ``first`` > 1 a resumed one."""
    now = 1_790_000_000.0 + first
    told: list[ev.Event] = []
    if first == 1:
        told.append(ev.Progress(time=now, task="reading", done=5, total=10, unit="files"))
        told.append(ev.Progress(time=now, task="reading", done=10, total=10, unit="files"))
        told.append(ev.Noted(time=now, message="2 duplicates dropped"))
    config = {"model": "tiny", "epochs": 3.0}
    told.append(
        ev.RunStarted(time=now, run="demo", objective="cpt", path=path, config=config, plan={"tokens": 9000}, step=first - 1)
    )
    for step in range(first, steps + 1):
        now += 0.2
        loss = 2 + 2 * math.exp(-step / 30)
        told.append(
            ev.StepDone(
                time=now, step=step, steps=steps, epoch=3 * step / steps, loss=loss, learning_rate=3e-4, grad_norm=0.8,
                tokens=400, trained=390, slots=420, seconds=0.2, memory_active=10**9, memory_peak=2 * 10**9,
                memory_limit=8 * 10**9, metrics={"margin": step / 100} if metrics else {},
            )
        )  # fmt: skip
        if step % max(steps // 10, 1) == 0:
            for name, value in (("valid", loss + 0.1), ("retention", 3.0)):
                told.append(
                    ev.Evaluated(
                        time=now, step=step, name=name, loss=value, perplexity=math.exp(value), bpb=value / 2, tokens=99,
                        seconds=0.1, best=name == "valid",
                    )
                )  # fmt: skip
            told.append(
                ev.Sampled(time=now, step=step, prompt="The lamp\x1b[31m of", text=" Varn\nis 世界 lit [bold]every[/bold] dusk")
            )
            told.append(ev.Saved(time=now, step=step, path=f"{path}/checkpoints/step-{step:06}", best=True))
    told.append(ev.Warned(time=now, message="the rate is high"))
    if end:
        told.append(
            ev.RunEnded(
                time=now, run="demo", status="finished", step=steps, result=RESULT, next_steps=["mlxforge runs plot demo"]
            )
        )
    return told


class Terminal:
    """A Python program in a pseudo-terminal. What it writes is kept; ``screen`` is what a person would see."""

    def __init__(self, code: str, width: int, height: int) -> None:
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
            # An environment of its own: readline puts COLUMNS and LINES into the process's behind os.environ's back.
            given = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
            given |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.pathsep.join(sys.path)}
            os.execve(sys.executable, [sys.executable, "-c", code], given)
        self.written = b""
        self.status: int | None = None
        self.size = (width, height)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.handle, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.size = (width, height)

    def type(self, keys: str) -> None:
        os.write(self.handle, keys.encode())

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.handle)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, text: str, seconds: float = 10) -> str:
        """Reads until ``text`` was written; everything written so far."""
        end = time.time() + seconds
        while text not in self.written.decode(errors="replace"):
            assert time.time() < end, f"{text!r} never came: {self.written[-2000:]!r}"
            if not self._read():
                break
        return self.written.decode(errors="replace")

    def _read(self) -> bool:
        ready, _, _ = select.select([self.handle], [], [], 0.05)
        try:
            data = os.read(self.handle, 65536) if ready else b""
        except OSError:
            return False
        self.written += data
        return bool(data) or not ready

    def wait(self, seconds: float = 10) -> int:
        """Reads to the end; the exit code, negative for a signal."""
        end = time.time() + seconds
        while self._read():
            assert time.time() < end, f"still running: {self.written[-2000:]!r}"
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def screen(self) -> list[str]:
        pyte = pytest.importorskip("pyte")
        screen = pyte.Screen(*self.size)
        # pyte knows no second screen: leaving it is shown as clearing.
        clear = b"\x1b[2J\x1b[H"
        pyte.ByteStream(screen).feed(self.written.replace(b"\x1b[?1049h", clear).replace(b"\x1b[?1049l", clear))
        return list(screen.display)

    def close(self) -> None:
        if self.status is None:
            try:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        os.close(self.handle)


@contextmanager
def terminals() -> Iterator[Callable[..., Terminal]]:
    """A function that opens terminals, all closed at the end."""
    opened: list[Terminal] = []

    def start(code: str, width: int = 90, height: int = 26) -> Terminal:
        opened.append(Terminal(code, width, height))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
