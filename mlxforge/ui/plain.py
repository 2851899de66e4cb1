"""Lines for pipes and CI: a few dozen a run, each one complete in itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TextIO

from mlxforge.core import events as ev
from mlxforge.ui import units
from mlxforge.ui.state import State
from mlxforge.ui.summary import summary

STEP_LINES = 20
PATIENCE = 10.0
ASCII = str.maketrans({"→": "->", "·": "-", "–": "-", "…": "...", "✓": "*", "✗": "x", "■": "=", "↵": " "})


class Plain:
    """A listener that writes lines to ``stream``: every twentieth of the run a step, and every evaluation, save and sample."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.state = State(now=lambda: 0.0)  # a line is of the moment that it tells of, however late it is read
        self._loss = 0.0
        self._trained = 0
        self._steps = 0
        self._told: dict[str, float] = {}

    def __call__(self, event: ev.Event) -> None:
        """Takes an event; writes a line if it is worth one."""
        self.state.hear(event)
        if say := SAYS.get(type(event)):
            say(self, event)

    def close(self) -> None:
        """The summary of a run that ended without a word (an error was raised): warnings are not lost."""
        if self.state.ended is None and self.state.latest is not None:
            self.write(summary(self.state).plain.rstrip())

    def write(self, text: str) -> None:
        """Writes lines; letters that the stream's encoding lacks are replaced, never an error."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(ASCII).encode(encoding, "replace").decode(encoding)
        self.stream.write(text + "\n")
        self.stream.flush()

    def started(self, event: ev.RunStarted) -> None:
        """Which run."""
        model = f" · {self.state.model}" if self.state.model else ""
        resumed = f" · resumed from step {event.step:,}" if event.step else ""
        self.write(f"mlxforge {units.one_line(event.run)} · {event.objective}{model}{resumed}")

    def progress(self, event: ev.Progress) -> None:
        """A line at the end of a task, and one every ten seconds until then."""
        ended = bool(event.total) and event.done >= event.total
        since = self._told.setdefault(event.task, event.time)
        if not ended and event.time - since < PATIENCE:
            return
        self._told[event.task] = event.time
        total = f"/{units.count(event.total)}" if event.total and not ended else ""
        self.write(f"prepare  {event.task}  {units.count(event.done)}{total} {event.unit}".rstrip())

    def step(self, event: ev.StepDone) -> None:
        """The mean loss since the last line, a trained token counting as much in one step as in another."""
        if event.loss - event.loss == 0:
            self._loss += event.loss * event.trained
            self._trained += event.trained
        every = max(1, -(-event.steps // STEP_LINES))
        if event.skipped:
            self.write(f"skipped  step {event.step}: loss or gradient not finite, {self.state.skipped} so far")
        if event.step % every and event.step not in (1, event.steps):
            return
        loss = self._loss / self._trained if self._trained else event.loss
        self._loss, self._trained = 0.0, 0
        parts = [
            f"step {event.step:>{len(str(event.steps))}}/{event.steps}",
            f"epoch {event.epoch:.2f}",
            f"loss {units.number(loss)}",
            f"lr {units.rate(event.learning_rate)}",
            f"grad {units.number(event.grad_norm, 3)}",
            f"{self.state.tokens_per_second or 0:,.0f} tokens/s",
            *([f"peak {units.size(event.memory_peak)}"] if event.memory_peak else []),
            *(f"{name} {units.number(value)}" for name, value in event.metrics.items()),
            *([f"eta {units.clock(self.state.eta)}"] if self.state.eta is not None else []),
        ]
        self.write("  ".join(parts))

    def evaluated(self, event: ev.Evaluated) -> None:
        """The scores of a set."""
        more = "".join(f"  {name} {units.number(value)}" for name, value in event.metrics.items())
        scores = f"loss {units.number(event.loss)}"
        if event.perplexity is not None:
            scores += f"  perplexity {units.number(event.perplexity)}  bpb {units.number(event.bpb)}"
        self.write(f"eval     step {event.step}  {event.name}  {scores}{more}" + ("  best" if event.best else ""))

    def scored(self, event: ev.Scored) -> None:
        """How many of the task's questions were answered right."""
        self.write(f"task     step {event.step}  " + "  ".join(f"{name} {value:.1%}" for name, value in event.scores.items()))

    def sampled(self, event: ev.Sampled) -> None:
        """What the model wrote."""
        self.write(f"sample   step {event.step}  {units.one_line(event.prompt)} → {units.one_line(event.text)}")

    def saved(self, event: ev.Saved) -> None:
        """Where a checkpoint is."""
        self.write(f"saved    step {event.step}  {event.path}" + ("  best" if event.best else ""))

    def noted(self, event: ev.Noted) -> None:
        """A note."""
        self.write(f"note     {units.one_line(event.message)}")

    def warned(self, event: ev.Warned) -> None:
        """A warning."""
        self.write(f"warning  {units.one_line(event.message)}")

    def ended(self, _: ev.RunEnded) -> None:
        """The summary; notes and warnings were written when they came."""
        self.state.notes.clear()
        self.state.warnings.clear()
        self.write(summary(self.state).plain.rstrip())


class Quiet(Plain):
    """Warnings and the summary only."""

    def __call__(self, event: ev.Event) -> None:
        """Takes an event."""
        self.state.hear(event)
        if isinstance(event, ev.Warned):
            self.warned(event)
        elif isinstance(event, ev.RunEnded):
            self.ended(event)


SAYS: dict[type[ev.Event], Callable[[Plain, Any], None]] = {
    ev.RunStarted: Plain.started,
    ev.Progress: Plain.progress,
    ev.StepDone: Plain.step,
    ev.Evaluated: Plain.evaluated,
    ev.Scored: Plain.scored,
    ev.Sampled: Plain.sampled,
    ev.Saved: Plain.saved,
    ev.Noted: Plain.noted,
    ev.Warned: Plain.warned,
    ev.RunEnded: Plain.ended,
}
