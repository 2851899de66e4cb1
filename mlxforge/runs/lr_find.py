"""A learning rate by trial: the rate rises from update to update until the loss does (Smith, arXiv 1506.01186)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from mlxforge.core.errors import ConfigError
from mlxforge.core.events import Control, Emit, Event, Progress, StepDone, Warned, ignore
from mlxforge.core.settings import TrainSettings
from mlxforge.runs import train as runs

KEEP = 0.8  # of the running mean, at each update
DIVERGED = 4.0  # the running loss over its lowest value
FELL = 0.2  # a running loss that fell by so much of itself and climbs back by most of it has diverged too
BACK = 0.75
CLIMB = 0.5  # of its fall: a smoothed loss that rises by so much has left its valley, whatever comes later
SETTLED = 10  # updates before a running loss means something
# Text of another kind has a loss of its own: beside the rows it would be noise on the curve.
QUIET: dict[str, Any] = {
    "patience": None, "retention": None, "task": None,
    "replay": [], "replay_ratio": 0.0, "chat_replay": [], "chat_replay_ratio": 0.0,
}  # fmt: skip
FALL = 0.02  # of the loss: less is noise


@dataclass(frozen=True)
class RateCurve:
    """Loss over learning rate, an entry an update; the suggestions are None where the loss did not fall.

    ``steepest``: where the smoothed loss falls fastest over log rate. ``tenth``: a tenth of the rate at its lowest.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    diverged: bool
    steepest: float | None
    tenth: float | None

    @property
    def suggested(self) -> float | None:
        """The smaller of the two, to two digits."""
        return None if self.steepest is None or self.tenth is None else float(f"{min(self.steepest, self.tenth):.2g}")


def lr_find(config: TrainSettings, low: float, high: float, steps: int, emit: Emit = ignore) -> RateCurve:
    """Trains ``steps`` updates on the real loop at rates from ``low`` to ``high``, each a fixed factor above the last.

    It ends where the loss diverges. No run directory is written; the weights are forgotten.

    Raises:
        ConfigError: no range, or too few steps.
        MlxforgeError: as of a training run.
    """
    if not 0 < low < high:
        raise ConfigError(f"{low:g} to {high:g} is no range", where="--from", fix="a number above 0, and --to above it")
    if steps < 2 * SETTLED:
        raise ConfigError(f"{steps} steps show nothing", where="--steps", fix=f"at least {2 * SETTLED}; 100 is usual")
    quiet = {name: value for name, value in QUIET.items() if hasattr(config, name)}
    changes = quiet | {"steps": steps, "max_skipped": steps + 1, "sample_tokens": 0}
    prepared = runs.prepare(runs.settled(msgspec.structs.replace(config, **changes)), emit)
    if prepared.reference is not None:
        prepared.reference()
    heard = _Ramp(emit)
    job = dataclasses.replace(
        prepared.job(None, lambda: 0),
        evaluate=dict,
        sample=list,
        task=lambda _: {},
        rate=lambda _, step, many: low * (high / low) ** (step / max(1, many - 1)),
    )
    from mlxforge.training.loop import Loop

    Loop(job, heard, heard.control).run()
    return curve_of(heard.rates, heard.losses, heard.diverged)


class _Ramp:
    """Keeps rates and losses, and ends the loop where the running loss is far above its lowest or no number."""

    def __init__(self, emit: Emit) -> None:
        self.emit, self.control = emit, Control()
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.diverged = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Warned) and not self.control.finish:
            self.emit(event)
        if not isinstance(event, StepDone):
            return
        self.emit(Progress(task="rising rate", done=event.step, total=event.steps, unit="steps"))
        if not event.skipped:
            self.rates.append(event.learning_rate)
            self.losses.append(event.loss)
        self.diverged = event.skipped or diverges(running_mean(self.losses))
        self.control.finish = self.diverged


def diverges(running: Sequence[float]) -> bool:
    """Whether a running loss is far above its lowest, or has climbed back most of its fall.

    A model that has collapsed to the frequencies of its tokens has a loss that is high, though not without bounds.
    """
    if len(running) <= SETTLED:
        return False
    begin, lowest, now = running[SETTLED // 2], min(running[SETTLED // 2 :]), running[-1]
    return now > DIVERGED * lowest or (lowest < (1 - FELL) * begin and now - lowest > BACK * (begin - lowest))


def running_mean(values: Sequence[float]) -> list[float]:
    """Exponential mean; its start counts as what has been seen, not as 0."""
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = KEEP * total + value, KEEP * weight + 1
        means.append(total / weight)
    return means


def curve_of(rates: Sequence[float], losses: Sequence[float], diverged: bool) -> RateCurve:
    """The smoothed curve, run forwards and backwards so that it does not lag, and what it suggests."""
    smoothed = running_mean(running_mean(losses)[::-1])[::-1]
    # The first updates are those of the optimizer's own warm-up.
    first = min(SETTLED // 2, len(smoothed))
    lowest = _valley(smoothed, first)
    if lowest <= first or smoothed[first] - smoothed[lowest] < FALL * abs(smoothed[first]):
        return RateCurve(list(rates), list(losses), smoothed, diverged, None, None)
    slopes = {
        index: (smoothed[index + 1] - smoothed[index - 1]) / math.log(rates[index + 1] / rates[index - 1])
        for index in range(first + 1, lowest)
    }
    steepest = min(slopes, key=slopes.__getitem__, default=first)
    return RateCurve(list(rates), list(losses), smoothed, diverged, rates[steepest], rates[lowest] / 10)


def _valley(smoothed: Sequence[float], first: int) -> int:
    """Where the first valley is lowest: behind it the model may be broken and yet look better."""
    lowest = first
    for index in range(first, len(smoothed)):
        if smoothed[index] < smoothed[lowest]:
            lowest = index
        elif smoothed[index] - smoothed[lowest] > CLIMB * max(smoothed[first] - smoothed[lowest], FALL * abs(smoothed[first])):
            break
    return lowest
