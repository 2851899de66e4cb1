"""The curve in characters: a golden picture, exact sizes, hard numbers."""

import math

import pytest

from mlxforge.ui.plot import Series, axis, plot, spark
from mlxforge.ui.state import LIMIT, Curve, smooth

GOLDEN = """\
4 ┤⠉⠒⠢⣀⡀
  │    ⠈⠑⠒⢄⣀
  │         ⠉⠒⠢⣀⡀
3 ┤o⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒o⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒o
  │                 ⠈⠉⠒⠤⢄
  │                      ⠉⠑⠢⠤⡀
2 ┤                          ⠈⠉⠒⠤⢄
  └┬──────────────────┬───────────
   0                 25
"""


def test_golden_picture() -> None:
    falling = Series(range(0, 41), [4 - 0.05 * x for x in range(41)], "blue")
    points = Series([0, 20, 40], [3.0, 3.0, 3.0], "red", "o")
    drawn = plot([falling, points], 34, 9).plain
    assert [line.rstrip() for line in drawn.split("\n")] == GOLDEN.splitlines()


@pytest.mark.parametrize("width", [0, 1, 5, 11, 12, 20, 60, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 15, 60])
def test_every_size_is_exact(width: int, height: int) -> None:
    curve = Series([1, 2, 3, 500], [1e-7, 5e6, 3.0, 2.0], "blue", "*")
    lines = plot([curve, Series([1], [2], "red", scatter=True)], width, height).plain.split("\n")
    assert len(lines) == height
    assert all(len(line) == width for line in lines)


@pytest.mark.parametrize("ys", [[0.0], [2.0, 2.0, 2.0], [-1.0, 1.0], [1e-12, 2e-12], [1e9, 3e9], [2.0, 2.0000001]])
def test_ticks_are_inside_distinct_and_rising(ys: list[float]) -> None:
    found = axis(ys, 4)
    labels = [found.label(tick) for tick in found.ticks]
    assert len(set(labels)) == len(labels)
    assert all(found.low - 1e-9 * abs(found.low) <= tick <= found.high + 1e-9 * abs(found.high) for tick in found.ticks)


@pytest.mark.parametrize("last", [1, 2, 3, 7, 60, 12_345])
def test_steps_have_whole_ticks(last: int) -> None:
    ticks = axis([1, last], 8, whole=True).ticks
    assert all(tick == int(tick) for tick in ticks)
    assert min(last, 5) <= len(ticks) <= 20


@pytest.mark.parametrize("high", [3, 4.1, 5.9, 7, 9.7, 19])
def test_there_are_enough_ticks_to_read_and_no_more_than_lines(high: float) -> None:
    assert 2 <= len(axis([2.1, high], 3).ticks) <= 6


def test_no_points_give_blanks() -> None:
    assert plot([], 20, 4).plain.split("\n") == [" " * 20] * 4


def test_spark_shows_the_whole_curve() -> None:
    assert spark([1, 2, 3, 4, 5, 6, 7, 8], 8) == ["▁▂▃▄▅▆▇█"]
    assert spark([1, 16], 2, 2) == [" █", "▁█"]
    assert spark([3.0] * 50, 5) == ["▁▁▁▁▁"]
    assert spark([1, 2], 6) == ["▁▁▁███"]
    assert spark([], 5, 2) == ["", ""]
    assert len(spark(list(range(1000)), 7)[0]) == 7


def test_a_long_curve_stays_small_and_keeps_its_mean() -> None:
    curve = Curve()
    for step in range(1, 50_001):
        curve.add(step, float(step % 2))
    assert LIMIT <= len(curve) < 2 * LIMIT
    assert sum(curve.ys) / len(curve) == pytest.approx(0.5)
    assert curve.xs == sorted(curve.xs)


def test_what_is_not_finite_leaves_no_trace() -> None:
    curve = Curve()
    for value in (1.0, math.nan, math.inf, -math.inf, 2.0):
        curve.add(1, value)
    assert curve.ys == [1.0, 2.0]


def test_cut_forgets_what_lies_after() -> None:
    curve = Curve()
    for step in range(10):
        curve.add(step, step)
    curve.cut(4)
    assert curve.xs == [0, 1, 2, 3, 4]


def test_smoothing_keeps_a_constant_and_its_length() -> None:
    assert smooth([2.0] * 300) == pytest.approx([2.0] * 300)
    assert smooth([]) == []
    noisy = [(-1) ** index for index in range(400)]
    assert max(map(abs, smooth([float(y) for y in noisy])[50:])) < 0.2
