"""Curves in a terminal: braille lines with axes (2 x 4 dots a character), and one-line bars for small curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
AXIS = "bright_black"


class Series(NamedTuple):
    """One curve. ``marker`` stands at its points, joined by a line; ``scatter`` draws dots alone. Later series lie on top."""

    xs: Sequence[float]
    ys: Sequence[float]
    style: str
    marker: str = ""
    scatter: bool = False


class Axis(NamedTuple):
    """A range and its round numbers."""

    low: float
    high: float
    ticks: list[float]

    def place(self, value: float, cells: int) -> int:
        """Where ``value`` lies on ``cells`` cells; outside values stay at the edge."""
        at = round((value - self.low) / (self.high - self.low) * (cells - 1))
        return min(max(at, 0), cells - 1)

    def label(self, tick: float) -> str:
        """A tick with as many decimals as the distance of two ticks asks for."""
        gap = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        big = max(abs(self.low), abs(self.high))
        if big >= 1e6 or 0 < gap < 1e-4:
            return f"{tick:.{max(1, math.ceil(math.log10(big / gap)))}e}"
        decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
        # 2.5 needs one decimal more than its power of ten says.
        decimals += not math.isclose(gap, round(gap, decimals), rel_tol=1e-6)
        return f"{tick:,.{decimals}f}"


def axis(values: Sequence[float], wanted: int, whole: bool = False) -> Axis:
    """The range of ``values`` and about ``wanted`` round ticks inside; ``whole`` allows whole numbers only."""
    low, high = min(values), max(values)
    # A range this small is rounding: shown flat, not blown up.
    if high - low <= 1e-4 * max(abs(high), abs(low)):
        margin = abs(high) * 0.05 or 1.0
        low, high = low - margin, high + margin
    enough = max(2, wanted // 2)
    if whole:  # there may be fewer whole numbers than that
        enough = min(enough, math.floor(high) - math.ceil(low) + 1)
    ticks = next(found for gap in _gaps((high - low) / wanted, whole) if len(found := _multiples(gap, low, high)) >= enough)
    return Axis(low, high, ticks)


def _gaps(rough: float, whole: bool) -> Iterator[float]:
    """Round distances, from about ``rough`` downwards; of whole numbers the last is 1."""
    power = math.floor(math.log10(rough)) + 1
    while True:
        for factor in (5.0, 2.5, 2.0, 1.0):
            gap = factor * 10.0**power
            if whole and gap <= 1:
                yield 1.0
                return
            if gap <= 1.5 * rough and (not whole or gap == round(gap)):
                yield gap
        power -= 1


def _multiples(gap: float, low: float, high: float) -> list[float]:
    first, last = math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9)
    return [index * gap for index in range(first, last + 1)]


class Canvas:
    """Characters with dots and colours; a dot of a later series replaces what an earlier one left in that character."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.bits = [[0] * width for _ in range(height)]
        self.styles = [[""] * width for _ in range(height)]
        self.marks: dict[tuple[int, int], tuple[str, str]] = {}

    def dot(self, x: int, y: int, style: str) -> None:
        """Sets the dot ``x`` from the left and ``y`` from the bottom."""
        column, row = x // 2, self.height - 1 - y // 4
        if self.styles[row][column] != style:
            self.bits[row][column], self.styles[row][column] = 0, style
        self.bits[row][column] |= DOTS[x % 2][3 - y % 4]

    def line(self, start: tuple[int, int], end: tuple[int, int], style: str) -> None:
        """Joins two dots."""
        (x0, y0), (x1, y1) = start, end
        length = max(abs(x1 - x0), abs(y1 - y0), 1)
        for index in range(length + 1):
            self.dot(x0 + round((x1 - x0) * index / length), y0 + round((y1 - y0) * index / length), style)

    def row(self, index: int) -> Iterator[tuple[str, str]]:
        """One line of characters, each with its style."""
        for column in range(self.width):
            if mark := self.marks.get((column, index)):
                yield mark
            elif bits := self.bits[index][column]:
                yield chr(0x2800 + bits), self.styles[index][column]
            else:
                yield " ", ""


def _columns(series: Series, across: Axis, dots: int) -> Iterator[tuple[int, float]]:
    """The mean of the points that share a column of dots: a long run costs no more to draw than a short one."""
    column, total, many = -1, 0.0, 0
    for x, y in zip(series.xs, series.ys, strict=True):
        at = across.place(x, dots)
        if at != column and many:
            yield column, total / many
            total, many = 0.0, 0
        column, total, many = at, total + y, many + 1
    if many:
        yield column, total / many


def _draw(canvas: Canvas, series: Series, across: Axis, up: Axis) -> None:
    wide, high = 2 * canvas.width, 4 * canvas.height
    if series.scatter:
        for x, y in zip(series.xs, series.ys, strict=True):
            if up.low <= y <= up.high:
                canvas.dot(across.place(x, wide), up.place(y, high), series.style)
        return
    last: tuple[int, int] | None = None
    for x, value in _columns(series, across, wide):
        here = (x, up.place(value, high))
        canvas.line(last or here, here, series.style)
        last = here
        if series.marker:
            canvas.marks[here[0] // 2, canvas.height - 1 - here[1] // 4] = (series.marker, series.style)


def _labels(across: Axis, width: int, gutter: int) -> str:
    """The numbers under the plot, centred under their ticks; one that would touch its neighbour is left out."""
    line = " " * (gutter + width)
    free = 0
    for tick in across.ticks:
        text = across.label(tick)
        begin = min(max(gutter + across.place(tick, width) - len(text) // 2, 0), gutter + width - len(text))
        if begin >= free:
            line = line[:begin] + text + line[begin + len(text) :]
            free = begin + len(text) + 2
    return line


def plot(series: Sequence[Series], width: int, height: int) -> Text:
    """Lines of exactly ``width`` characters, ``height`` of them, numbers on both axes included; blank where nothing fits."""
    shown = [one for one in series if len(one.xs)]
    framing = [one for one in shown if not one.scatter] or shown
    if not shown or width < 12 or height < 3:
        return Text("\n".join([" " * max(width, 0)] * max(height, 0)), no_wrap=True, end="")
    rows = height - 2
    up = axis([y for one in framing for y in one.ys], max(2, rows // 3))
    gutter = max(len(up.label(tick)) for tick in up.ticks)
    inner = width - gutter - 2
    across = axis([x for one in shown for x in (one.xs[0], one.xs[-1])], max(2, inner // 12), whole=True)
    canvas = Canvas(max(inner, 1), rows)
    for one in shown:
        _draw(canvas, one, across, up)
    ticks = {rows - 1 - up.place(tick, 4 * rows) // 4: up.label(tick) for tick in up.ticks}
    picture = Text(no_wrap=True, end="", overflow="crop")
    for index in range(rows):
        picture.append(f"{ticks.get(index, ''):>{gutter}} {'┤' if index in ticks else '│'}", AXIS)
        _append(picture, canvas.row(index))
        picture.append("\n")
    marks = {across.place(tick, canvas.width) for tick in across.ticks}
    picture.append(" " * gutter + " └" + "".join("┬" if x in marks else "─" for x in range(canvas.width)) + "\n", AXIS)
    picture.append(_labels(across, canvas.width, gutter + 2), AXIS)
    return picture


def _append(picture: Text, characters: Iterator[tuple[str, str]]) -> None:
    """Appends characters in runs of one style: few spans are quick to render."""
    run, style = "", ""
    for character, its in characters:
        if its != style and run:
            picture.append(run, style)
            run = ""
        run, style = run + character, its
    picture.append(run, style)


def spark(ys: Sequence[float], width: int, height: int = 1) -> list[str]:
    """The whole of a curve as ``height`` lines of ``width`` bars, the top line first; a flat one is drawn low."""
    if not ys or width < 1:
        return [""] * height
    means = []
    for index in range(width):
        begin = index * len(ys) // width
        part = ys[begin : max((index + 1) * len(ys) // width, begin + 1)]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    scale = (height * len(BARS) - 1) / (high - low) if high - low > 1e-6 * abs(high) else 0.0
    levels = [round((mean - low) * scale) for mean in means]
    floors = [len(BARS) * line for line in reversed(range(height))]
    return ["".join(BARS[min(level - floor, 7)] if level >= floor else " " for level in levels) for floor in floors]
