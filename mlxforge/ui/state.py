"""What the events so far amount to: the numbers and curves a screen shows. No terminal code."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from mlxforge.core import events as ev
from mlxforge.ui.units import model_name, number

LIMIT = 1024
RECENT_STEPS = 32


class Curve:
    """Points in order of x, at most ``2 * LIMIT``: when full, neighbours are averaged, so memory and drawing stay cheap."""

    def __init__(self) -> None:
        self.xs: list[float] = []
        self.ys: list[float] = []
        self._stride = 1
        self._pending: list[tuple[float, float]] = []

    def add(self, x: float, y: float) -> None:
        """Appends a point; one that is not finite leaves no trace."""
        if y - y != 0:
            return
        self._pending.append((x, y))
        if len(self._pending) < self._stride:
            return
        self.xs.append(sum(point[0] for point in self._pending) / self._stride)
        self.ys.append(sum(point[1] for point in self._pending) / self._stride)
        self._pending.clear()
        if len(self.xs) >= 2 * LIMIT:
            self.xs = [(a + b) / 2 for a, b in zip(self.xs[::2], self.xs[1::2], strict=True)]
            self.ys = [(a + b) / 2 for a, b in zip(self.ys[::2], self.ys[1::2], strict=True)]
            self._stride *= 2

    def cut(self, x: float) -> None:
        """Forgets what lies after ``x``: a resumed run goes over it again."""
        while self.xs and self.xs[-1] > x:
            self.xs.pop()
            self.ys.pop()
        self._pending.clear()

    def __len__(self) -> int:
        return len(self.xs)


def smooth(ys: list[float], window: float = 0.03) -> list[float]:
    """Exponential mean over about ``window`` of the points, run forwards and then backwards so that it does not lag.

    The last value is the plain running mean: it moves with new points only, never with what will come.
    """
    return _running(_running(ys, window)[::-1], window)[::-1]


def _running(ys: list[float], window: float) -> list[float]:
    keep = 1 - 1 / max(1.0, window * len(ys))
    total = weight = 0.0
    means = []
    for y in ys:
        # Dividing by the weight so far makes the first mean the first point.
        total, weight = keep * total + y, keep * weight + 1
        means.append(total / weight)
    return means


class Evaluation:
    """One fixed set over time: its curve, its first and its latest score."""

    def __init__(self, first: ev.Evaluated) -> None:
        self.first = self.last = first
        self.curve = Curve()


class State:
    """Folds events, one at a time, into what is known. ``now`` is the clock that elapsed time is read from."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.run = self.objective = self.model = self.path = self.reason = ""
        self.status = "starting"
        self.config: dict[str, Any] = {}
        self.plan: dict[str, Any] = {}
        self.started = False
        self.left = False  # whoever watched has left: it goes on
        self.begun = self.heard = 0.0
        self.elapsed_before = 0.0
        self.latest: ev.StepDone | None = None
        self.ended: ev.RunEnded | None = None
        self.best: ev.Evaluated | None = None
        self.tasks: dict[str, ev.Progress] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.scored: dict[str, list[float]] = {}  # the task's scores, the first one first
        self.samples: list[ev.Sampled] = []
        self.first_texts: dict[str, str] = {}  # what was said to each prompt at first
        self.recent: deque[tuple[float, str, str]] = deque(maxlen=64)
        self.warnings: dict[str, int] = {}
        self.notes: dict[str, int] = {}
        self.loss, self.learning_rate, self.grad_norm, self.speed = Curve(), Curve(), Curve(), Curve()
        self.metrics: dict[str, Curve] = {}
        self.values: dict[str, float] = {}
        self.tokens = self.trained = self.slots = self.skipped = 0
        self._paces: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)
        self._ticks: deque[tuple[int, float]] = deque(maxlen=4 * RECENT_STEPS)

    def hear(self, event: ev.Event) -> None:
        """Takes one event in; events of unknown kinds are ignored."""
        if fold := FOLDS.get(type(event)):
            self.begun = self.begun or event.time
            fold(self, event)
            self.heard = max(self.heard, event.time)

    @property
    def elapsed(self) -> float:
        """Seconds of work, over all the sittings of a resumed run."""
        if not self.begun:
            return 0.0
        until = self.ended.time if self.ended else max(self.heard, self.now())
        return self.elapsed_before + until - self.begun

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last steps, by their own time: evaluations and saves do not count."""
        seconds = sum(pace[1] for pace in self._paces)
        return sum(pace[0] for pace in self._paces) / seconds if seconds else None

    @property
    def eta(self) -> float | None:
        """Seconds to the last step at the recent pace, evaluations and saves included."""
        if self.ended or not self.latest or len(self._ticks) < 2:
            return None
        (first, begun), (last, then) = self._ticks[0], self._ticks[-1]
        if last <= first:
            return None
        left = (self.latest.steps - last) * (then - begun) / (last - first)
        return max(0.0, left - max(0.0, self.now() - then))

    def _start(self, event: ev.RunStarted) -> None:
        if self.started:
            self.elapsed_before += self.heard - self.begun
            self.begun = event.time
        self.run, self.objective, self.path = event.run, event.objective, event.path
        self.model, self.config, self.plan = model_name(str(event.config.get("model", ""))), event.config, event.plan
        self.started, self.ended, self.status, self.reason = True, None, "preparing", ""
        # What named no total cannot say that it ended; here it has.
        self.tasks = {name: task for name, task in self.tasks.items() if task.total}
        self._ticks.clear()
        if event.step:
            self._say(event, "resumed", f"from step {event.step:,}")
            for curve in (self.loss, self.learning_rate, self.grad_norm, self.speed, *self.metrics.values()):
                curve.cut(event.step)
            for evaluation in self.evaluations.values():
                evaluation.curve.cut(event.step)

    def _progress(self, event: ev.Progress) -> None:
        self.tasks[event.task] = event

    def _step(self, event: ev.StepDone) -> None:
        self.latest, self.status = event, "training"
        self._ticks.append((event.step, event.time))
        self.loss.add(event.step, event.loss)
        self.learning_rate.add(event.step, event.learning_rate)
        self.grad_norm.add(event.step, event.grad_norm)
        if event.seconds > 0:
            self._paces.append((event.tokens, event.seconds))
            self.speed.add(event.step, event.tokens / event.seconds)
        self._measure(event.step, event.metrics)
        self.tokens += event.tokens
        self.trained += event.trained
        self.slots += event.slots
        if event.skipped:
            self.skipped += 1
            self._say(event, "skipped", f"step {event.step:,}: loss or gradient not finite")

    def _measure(self, step: int, metrics: dict[str, float], prefix: str = "") -> None:
        for name, value in metrics.items():
            self.metrics.setdefault(prefix + name, Curve()).add(step, value)
            self.values[prefix + name] = value

    def _evaluated(self, event: ev.Evaluated) -> None:
        evaluation = self.evaluations.setdefault(event.name, Evaluation(event))
        evaluation.last = event
        evaluation.curve.cut(event.step - 0.5)
        evaluation.curve.add(event.step, event.loss)
        self._measure(event.step, event.metrics, f"{event.name} ")
        if event.best:
            self.best = event
        bits = f", {number(event.bpb)} bpb" if event.bpb is not None else ""
        self._say(
            event,
            event.name,
            f"loss {number(event.loss)}{bits}" + (", the best" if event.best and event.step else ""),
        )

    def _scored(self, event: ev.Scored) -> None:
        for name, value in event.scores.items():
            self.scored.setdefault(name, []).append(value)
        self._say(event, "task", ", ".join(f"{name.replace('_', ' ')} {value:.1%}" for name, value in event.scores.items()))

    def _sampled(self, event: ev.Sampled) -> None:
        self.first_texts.setdefault(event.prompt, event.text)
        self.samples = [sample for sample in self.samples if sample.step == event.step] + [event]

    def _saved(self, event: ev.Saved) -> None:
        self._say(event, "saved", f"step {event.step:,}" + (", the best" if event.best and event.step else ""))

    def _noted(self, event: ev.Noted) -> None:
        self.notes[event.message] = self.notes.get(event.message, 0) + 1
        self._say(event, "noted", event.message)

    def _warned(self, event: ev.Warned) -> None:
        self.warnings[event.message] = self.warnings.get(event.message, 0) + 1
        self._say(event, "warned", event.message)

    def _end(self, event: ev.RunEnded) -> None:
        self.ended, self.status, self.reason, self.run = event, event.status, event.reason, event.run or self.run
        self._say(event, event.status, event.reason or f"after step {event.step:,}")

    def after(self, past: State) -> State:
        """``past`` gone on with: what was heard here before a resumed run told its name belongs to the new sitting."""
        past.tasks.update(self.tasks)
        past.recent.extend(self.recent)
        for mine, theirs in ((self.notes, past.notes), (self.warnings, past.warnings)):
            theirs.update({message: theirs.get(message, 0) + times for message, times in mine.items()})
        past.now = self.now
        return past

    def _say(self, event: ev.Event, kind: str, text: str) -> None:
        self.recent.append((event.time, kind, text))


FOLDS: dict[type[ev.Event], Callable[[State, Any], None]] = {
    ev.RunStarted: State._start,
    ev.Progress: State._progress,
    ev.StepDone: State._step,
    ev.Evaluated: State._evaluated,
    ev.Scored: State._scored,
    ev.Sampled: State._sampled,
    ev.Saved: State._saved,
    ev.Noted: State._noted,
    ev.Warned: State._warned,
    ev.RunEnded: State._end,
}
