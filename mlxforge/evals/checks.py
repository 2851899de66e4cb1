"""A report held to what is required of it, with noise in mind.

Two kinds of check, and a rule for noise in each:

- A requirement holds where the value meets its bound. An interval that reaches over the bound is told: more rows could turn
  it. ``strict`` wants the whole interval on the good side.
- A regression counts where it is proved: the interval of the paired difference lies beyond the tolerance as a whole. What is
  worse on paper alone passes and is told; else every small set would stop every second release. ``strict`` turns the burden of
  proof: the whole interval must lie within the tolerance (a test of non-inferiority).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import msgspec

from mlxforge.evals.figures import SIGNS, figure, find_test, number, signed
from mlxforge.evals.report import Report, Value
from mlxforge.evals.requirements import Bound, Tolerance

LEVEL = 0.95  # of the intervals in a report
MISSING = Value(value=None, why="not in the report")
# Comparison -> whether it holds of the sign of (value - bound).
HOLDS: dict[str, Callable[[int], bool]] = {
    ">=": lambda sign: sign >= 0,
    "<=": lambda sign: sign <= 0,
    ">": lambda sign: sign > 0,
    "<": lambda sign: sign < 0,
    "==": lambda sign: sign == 0,
}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One requirement as it came out.

    Attributes:
        value, low, high: of the figure; of a regression the difference, model minus against. The interval may be unknown.
        bound: what the value had to reach or keep to.
        against: of a regression the model that it is held against, else empty.
        within_noise: the interval reaches over the bound.
        why: what a reader must know of it; empty where it is plain.
    """

    text: str
    model: str
    set: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    bound: str
    against: str
    passed: bool
    within_noise: bool
    why: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What ``gate.json`` says, as far as pages show it."""

    passed: bool
    requirements: list[Check]
    time: str = ""


def sign(value: float, bound: float) -> int:
    """-1, 0 or 1; equal but for rounding is equal: 1.22 - 1.20 is 0.02."""
    if math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-12):
        return 0
    return 1 if value > bound else -1


def widened(value: float, low: float, high: float, confidence: float) -> tuple[float, float]:
    """A 95 % interval at another level: each side in proportion to the normal quantiles."""
    factor = NormalDist().inv_cdf((1 + confidence) / 2) / NormalDist().inv_cdf((1 + LEVEL) / 2)
    return value - (value - low) * factor, value + (high - value) * factor


def hold(report: Report, one: Bound, *, confidence: float = LEVEL, strict: bool = False) -> Check:
    """A requirement of a value."""
    value = figure(report, *one.path) or MISSING
    bound = f"{one.comparison} {number(one.bound, value.unit)}"
    if value.value is None:
        return _check(one, bound, why=_unmeasured(one.path.label, value))
    holds = HOLDS[one.comparison]
    met = holds(sign(value.value, one.bound))
    if value.low is None or value.high is None:
        return _check(one, bound, value.value, passed=met, why="no interval: the value alone")
    low, high = widened(value.value, value.low, value.high, confidence)
    ends = {holds(sign(end, one.bound)) for end in (low, high)}
    inside = low < high and sign(low, one.bound) <= 0 <= sign(high, one.bound)
    noise = inside if one.comparison == "==" else len(ends) > 1
    passed = met and ends == {True} if strict else met
    return _check(one, bound, value.value, low, high, passed=passed, noise=noise, why=_told(passed, noise, strict))


def hold_tolerance(report: Report, one: Tolerance, *, confidence: float = LEVEL, strict: bool = False) -> Check:
    """A requirement that nothing became worse by more than a tolerance."""
    mine = figure(report, *one.path) or MISSING
    theirs = figure(report, one.against, one.path.set, one.path.metric) or MISSING
    if mine.value is None or theirs.value is None:
        lacking = (one.path.label, mine) if mine.value is None else (one.against, theirs)
        return _check(one, "", why=_unmeasured(*lacking))
    allowed = one.amount * abs(theirs.value) if one.share else one.amount
    harm = -SIGNS[mine.better]  # how much worse it is: harm times the difference
    bound = f"{'at most' if harm > 0 else 'at least'} {signed(harm * allowed)}"
    value, interval, how = difference(report, one, mine, theirs)
    if interval is None:
        return _check(one, bound, value, passed=sign(harm * value, allowed) <= 0, why=how)
    low, high = widened(value, *interval, confidence)
    least, most = sorted((harm * low, harm * high))
    proved, excluded = sign(least, allowed) > 0, sign(most, allowed) <= 0
    noise, passed = not proved and not excluded, excluded if strict else not proved
    why = "; ".join(part for part in (_told(passed, noise, strict), how) if part)
    return _check(one, bound, value, low, high, passed=passed, noise=noise, why=why)


def difference(report: Report, one: Tolerance, mine: Value, theirs: Value) -> tuple[float, tuple[float, float] | None, str]:
    """Model minus against, its 95 % interval if one can be had, and what must be said of it.

    The paired test of the report; without one the two intervals as if the models had seen other rows, which is wider.
    """
    if test := find_test(report, one.path.label, one.against, one.path.set, one.path.metric):
        return test.difference, (test.low, test.high), ""
    assert mine.value is not None
    assert theirs.value is not None
    value = mine.value - theirs.value
    if mine.low is None or mine.high is None or theirs.low is None or theirs.high is None:
        return value, None, "no interval: the values alone"
    below = math.hypot(mine.value - mine.low, theirs.high - theirs.value)
    above = math.hypot(mine.high - mine.value, theirs.value - theirs.low)
    return value, (value - below, value + above), "no paired test: wider, from both intervals"


def _told(passed: bool, noise: bool, strict: bool) -> str:
    if not noise:
        return "" if passed else "beyond noise"
    return "within noise" if passed else "not proved" if strict else "missed within noise"


def _unmeasured(label: str, value: Value) -> str:
    return f"{label} has no value" + (f": {value.why}" if value.why else "")


def _check(
    one: Bound | Tolerance,
    bound: str,
    value: float | None = None,
    low: float | None = None,
    high: float | None = None,
    *,
    passed: bool = False,
    noise: bool = False,
    why: str = "",
) -> Check:
    label, name, metric = one.path
    return Check(
        text=one.text,
        model=label,
        set=name,
        metric=metric,
        value=value,
        low=low,
        high=high,
        bound=bound,
        against=one.against if isinstance(one, Tolerance) else "",
        passed=passed,
        within_noise=noise,
        why=why,
    )
