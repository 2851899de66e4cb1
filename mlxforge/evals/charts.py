"""The drawings of a report's page: an interval on a line, and the curves of a training run; plain SVG and CSS."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mlxforge.evals.figures import number, visible
from mlxforge.evals.report import Value

WIDTH, HEIGHT = 340, 180
LEFT, RIGHT, TOP, BOTTOM = 34, 6, 8, 22
POINTS = 400  # a curve has no more: a screen shows no more
Series = Sequence[tuple[float, float]]


def bounds(values: Sequence[Value]) -> tuple[float, float]:
    """What a line of intervals spans: 0 to 1 where all lie there and are not close together, else what there is."""
    known = [one for value in values for one in (value.value, value.low, value.high) if one is not None and math.isfinite(one)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if low >= 0 and high <= 1 and high - low > 0.2:
        return 0.0, 1.0
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def whisker(value: Value, span: tuple[float, float]) -> str:
    """A dot at the value over its interval, set into ``span``."""
    if value.value is None or not math.isfinite(value.value):
        return ""

    def place(one: float | None) -> str:
        at = value.value if one is None else one
        assert at is not None
        return f"{100 * min(1.0, max(0.0, (at - span[0]) / (span[1] - span[0]))):.2f}%"

    style = f"--v:{place(None)};--l:{place(value.low)};--h:{place(value.high)}"
    return f'<span class="whisker" style="{style}" aria-hidden="true"><i></i><b></b></span>'


def curve(label: str, points: Sequence[dict[str, Any]], colour: int) -> str:
    """One run's training loss as a line and its validation loss as marks, over the steps. Empty where there is no point."""
    loss, valid = _series(points, "loss"), _series(points, "valid")
    if not loss and not valid:
        return ""
    xs, ys = [x for x, _ in (*loss, *valid)], [y for _, y in (*loss, *valid)]
    low, high = min(ys), max(ys)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    frame = (min(xs), max(xs), low - room, high + room)
    name = html.escape(visible(label))
    facts = [f"{number(loss[0][1])} → {number(loss[-1][1])}"] if loss else []
    best = min(valid, key=lambda one: one[1]) if valid else None
    facts += [f"best validation {number(best[1])} at step {best[0]:,.0f}"] if best else []
    body = "".join((*_grid(frame), _path(_thin(loss), frame, "loss"), _path(valid, frame, "valid"), *_marks(valid, frame)))
    keys = '<span class="key">training</span>' * bool(loss) + '<span class="key dashed">validation</span>' * bool(valid)
    about = html.escape(", ".join(facts))
    return (
        f'<figure style="--c:var(--c{colour % 8})">'
        f"<figcaption><strong><bdi>{name}</bdi></strong><span>{about}</span>{keys}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss of {name}: {about}">{body}</svg></figure>'
    )


def _series(points: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    found = [(float(point["step"]), point.get(name)) for point in points]
    return sorted((step, float(value)) for step, value in found if value is not None and math.isfinite(value))


def _thin(series: Series) -> Series:
    """At most ``POINTS`` points, each the mean of its neighbours."""
    width = math.ceil(len(series) / POINTS)
    if width < 2:
        return series
    groups = [series[start : start + width] for start in range(0, len(series), width)]
    return [(sum(x for x, _ in one) / len(one), sum(y for _, y in one) / len(one)) for one in groups]


def _at(x: float, y: float, frame: tuple[float, float, float, float]) -> tuple[float, float]:
    left, right, low, high = frame
    across = (x - left) / (right - left) if right > left else 0.5
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _path(series: Series, frame: tuple[float, float, float, float], kind: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_at(*one, frame) for one in series))
    return f'<polyline class="{kind}" points="{places}"/>' if len(series) > 1 else ""


def _marks(series: Series, frame: tuple[float, float, float, float]) -> Iterator[str]:
    for step, value in series if len(series) <= 60 else ():
        x, y = _at(step, value, frame)
        words = f"<title>step {step:,.0f}: {number(value)}</title>"
        yield f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="2.6">{words}</circle>'


def _grid(frame: tuple[float, float, float, float]) -> Iterator[str]:
    left, right, low, high = frame
    for value in ticks(low, high):
        _, y = _at(left, value, frame)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    steps = [step for step in ticks(left, right) if step == int(step)] or [left]
    for step in steps:
        x, _ = _at(step, low, frame)
        anchor = "end" if x > WIDTH - 24 else "middle"
        yield f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{step:,.0f}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers within the bounds: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 10) for at in range(first, math.floor(high / step + 1e-9) + 1)]
