"""What a run says while it works: small frozen events, and the listeners that hear them.

The loop and every long job call ``emit(event)``; dashboards, plain lines and event logs listen. Nothing else prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Union

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base of all events. ``time`` is seconds since the epoch."""

    time: float = msgspec.field(default_factory=time.time)


class RunStarted(Event, frozen=True, kw_only=True, tag=True):
    """A run begins or, with ``step`` > 0, goes on."""

    run: str
    objective: str
    path: str
    config: dict[str, Any]
    plan: dict[str, Any]
    step: int = 0


class Progress(Event, frozen=True, kw_only=True, tag=True):
    """A long preparation moved on; ``total`` is 0 where it is not known. ``done == total > 0`` ends the task."""

    task: str
    done: float
    total: float = 0
    unit: str = ""


class StepDone(Event, frozen=True, kw_only=True, tag=True):
    """One optimizer update. Token counts are of this step; ``trained`` of them carry loss; ``slots`` counts padding too."""

    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained: int
    slots: int
    seconds: float
    memory_active: int = 0
    memory_peak: int = 0
    memory_limit: int = 0
    skipped: bool = False
    metrics: dict[str, float] = {}


class Evaluated(Event, frozen=True, kw_only=True, tag=True):
    """A fixed set was scored. ``name`` is 'valid' or 'retention'; ``loss`` in nats a token, ``bpb`` in bits a byte.

    Of pairs the loss is the objective's own, a pair, and there is no perplexity.
    """

    step: int
    name: str
    loss: float
    perplexity: float | None
    bpb: float | None
    tokens: int
    seconds: float
    best: bool = False
    metrics: dict[str, float] = {}


class Scored(Event, frozen=True, kw_only=True, tag=True):
    """The model answered the task's questions; ``scores`` such as ``exact_match`` are shares of 1."""

    step: int
    scores: dict[str, float]


class Sampled(Event, frozen=True, kw_only=True, tag=True):
    """The model continued a prompt, greedily."""

    step: int
    prompt: str
    text: str


class Saved(Event, frozen=True, kw_only=True, tag=True):
    """A checkpoint is on disk, whole."""

    step: int
    path: str
    best: bool = False


class Noted(Event, frozen=True, kw_only=True, tag=True):
    """Something the user should be able to read later: a count of rows dropped, a default chosen."""

    message: str


class Warned(Event, frozen=True, kw_only=True, tag=True):
    """Something is likely not what the user wants; the job goes on."""

    message: str


class RunEnded(Event, frozen=True, kw_only=True, tag=True):
    """The last event of a run. ``status`` is 'finished', 'interrupted' or 'failed'; ``result`` is what ``--json`` prints."""

    run: str
    status: str
    step: int
    result: dict[str, Any]
    next_steps: list[str] = []
    reason: str = ""


class StageStarted(Event, frozen=True, kw_only=True, tag=True):
    """A stage of a pipeline begins. ``states`` are all its stages: 'waits', 'skipped', 'done', and of this one 'runs'."""

    stage: str
    states: dict[str, str]


class StageEnded(Event, frozen=True, kw_only=True, tag=True):
    """A stage of a pipeline ended. ``status`` is 'done', 'interrupted' or 'failed'."""

    stage: str
    status: str
    seconds: float
    gained: str = ""


AnyEvent = Union[
    RunStarted, Progress, StepDone, Evaluated, Scored, Sampled, Saved, Noted, Warned, RunEnded, StageStarted, StageEnded
]
Emit = Callable[[Event], None]

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AnyEvent).decode


def ignore(event: Event) -> None:
    """The listener that hears nothing."""


def fan_out(listeners: Iterable[Emit]) -> Emit:
    """One ``emit`` that tells every listener in order."""
    heard = tuple(listeners)

    def emit(event: Event) -> None:
        for listener in heard:
            listener(event)

    return emit


class Control:
    """What a user asks of a running loop, from a key or a signal; the loop looks after every step.

    ``save`` and ``evaluate`` are wishes, reset once met; ``finish`` ends the run cleanly after this step
    (state saved, run resumable); ``interrupted`` tells that a signal asked for it, ``reason`` why it was stopped otherwise.
    ``cleanups`` give the terminal back where the process must stop at once. ``stages`` are those of the pipeline that the run
    is one of, as in StageStarted.
    """

    def __init__(self) -> None:
        self.cleanups: list[Callable[[], None]] = []
        self.stages: Mapping[str, str] = {}
        self.save = False
        self.evaluate = False
        self.finish = False
        self.interrupted = False
        self.reason = ""
