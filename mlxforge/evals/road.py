"""A pipeline as plain values: what is planned and expected of each stage, what it gained and what it cost."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Action = Literal["run", "resume", "skip", "leave"]


class Forecast(msgspec.Struct, kw_only=True):
    """What a stage is expected to take; None where that is not known yet, and then ``why``. Bytes, seconds, US dollars.

    ``rough``: the data are still to be made: tokens, steps and time by what is expected of them, memory of full micro-batches.
    """

    tokens: int | None = None
    steps: int | None = None
    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None
    cost: float | None = None
    rough: bool = False
    why: str = ""


class PlanRow(msgspec.Struct, kw_only=True):
    """What happens to a stage, why, and what is expected of it."""

    stage: str
    action: Action
    why: str = ""
    forecast: Forecast | None = None


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """One figure before and after a stage; ``better`` is 'higher' or 'lower'. ``share`` tells of shares of 1."""

    name: str
    before: float | None
    after: float | None
    better: str = "higher"
    share: bool = False


class Outcome(msgspec.Struct, kw_only=True):
    """What one stage came to. ``done`` tells whether it was done now; ``made`` is in words. Seconds and bytes."""

    stage: str
    status: str
    done: bool
    seconds: float = 0.0
    tokens: int = 0
    peak_memory: int = 0
    disk: int = 0
    cost: float = 0.0
    made: str = ""
    gains: list[Gain] = []


class Summary(msgspec.Struct, kw_only=True):
    """The whole pipeline, in seconds, bytes and US dollars; ``peak_memory`` is the most of all stages.

    ``report`` is the page of eval; ``ships`` is None where nothing was required of it; ``gate`` is as in ``gate.json``.
    """

    project: str
    stages: list[Outcome]
    seconds: float
    tokens: int
    peak_memory: int
    disk: int
    cost: float
    report: str | None = None
    ships: bool | None = None
    gate: dict[str, Any] | None = None
