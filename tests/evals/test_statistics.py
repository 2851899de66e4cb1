"""Intervals and tests over rows: what SciPy gives for the same, exact cases by hand, and laws."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxforge.evals.estimators import mean, quantile, ratio, share
from mlxforge.evals.statistics import DRAWS, EXACT, interval, paired, point

# fmt: off
X = np.array([
    2.15, 2.13, 3.13, 1.07, 2.18, 1.7, 0.89, 1.12, 1.72, 0.85, 1.68, 3.96, 1.45, 1.96, 1.51, 0.6, 5.94, 2.68, 0.32, 1.81,
    0.93, 0.72, 1.79, 1.09, 3.1, 0.82, 1.1, 0.63, 1.64, 1.29, 2.04, 0.61, 1.13, 2.85, 2.02, 1.31, 2.84, 3.11, 0.39, 1.15,
    1.93, 0.55, 2.71, 1.67, 2.35, 2.02, 1.35, 0.12, 1.71, 2.13, 3.05, 2.69, 2.21, 0.38, 1.53, 1.86, 3.03, 1.68, 2.35, 2.68,
])
Y = np.array([
    1.18, 0.41, 3.87, 3.35, 1.63, 0.95, 1.61, 0.7, 1.56, 0.82, 2.35, 3.88, 1.92, 2.07, 1.09, 0.6, 5.43, 2.93, -0.33, 1.19,
    2.35, 0.93, 2.0, 1.75, 3.02, 0.88, 1.69, 1.11, 0.96, 2.21, 1.82, 0.01, 0.66, 2.79, 3.57, 0.62, 3.22, 1.65, 0.64, 2.12,
    1.99, 0.3, 3.14, 2.48, 3.13, 3.85, 1.77, -0.1, 1.86, 2.33, 3.38, 2.91, 2.6, -0.71, 2.44, 1.65, 2.34, 2.44, 3.65, 3.33,
])
# fmt: on
SEEDS = range(3)


def column(values):
    return np.asarray(values, np.float64)[:, None]


# scipy.stats.bootstrap(method="percentile", n_resamples=200000) of SciPy gives the bounds; three seeds of its own differ
# by 0.002.
@pytest.mark.parametrize("seed", SEEDS)
def test_bootstrap_intervals_are_scipys(seed):
    assert interval(column(X), mean, seed) == pytest.approx((1.546, 2.053), abs=0.02)
    assert interval(np.stack([X, Y], axis=1), ratio, seed) == pytest.approx((0.839, 1.026), abs=0.01)
    assert interval(column(X), quantile(0.95), seed) == pytest.approx((2.8495, 4.059), abs=0.12)
    found = paired(column(X), column(Y), mean, seed)
    assert (found.low, found.high) == pytest.approx((-0.335, 0.046), abs=0.02)


# scipy.stats.permutation_test(permutation_type="samples"): 0.1515 of 100,000 draws.
@pytest.mark.parametrize("seed", SEEDS)
def test_the_randomisation_test_is_scipys(seed):
    assert paired(column(X), column(Y), mean, seed).p == pytest.approx(0.1515, abs=0.03)


def test_few_rows_give_the_exact_p():
    """Eight pairs, one of them equal: 8 of the 128 sign patterns reach the difference; SciPy says 0.0625 too."""
    one, other = [0.9, 0.2, 0.5, 0.7, 0.1, 0.4, 0.8, 0.3], [0.5, 0.1, 0.6, 0.3, 0.1, 0.2, 0.4, 0.2]
    found = paired(column(one), column(other), mean)
    assert found.p == 8 / 128
    assert found.difference == pytest.approx(0.1875)


@pytest.mark.parametrize("rows", [1, 2, 5, EXACT])
def test_a_model_that_is_better_on_every_row(rows):
    """Of all sign patterns only the one that was seen and its mirror image are as extreme: p = 2 / 2^n."""
    assert paired(column([1] * rows), column([0] * rows), share).p == 2 / 2**rows


def test_equal_rows_do_not_dilute_the_exact_test():
    one, other = [1, 1, 1] + [0] * 500, [0, 0, 0] + [0] * 500
    assert paired(column(one), column(other), share).p == 2 / 8


def test_all_swaps_are_looked_at_where_they_come_in_pieces():
    """600 rows beside the eleven that differ: the 2,048 ways do not fit in one piece."""
    rest = np.arange(600) / 600
    one, other = np.concatenate([rest, np.arange(11) + 1.0]), np.concatenate([rest, np.zeros(11)])
    assert paired(column(one), column(other), mean).p == 2 / 2**11


def test_p_is_never_0():
    assert paired(column([1] * 60), column([0] * 60), share).p == 1 / (DRAWS + 1)


def test_p_is_exact_on_both_sides_of_the_border():
    """A sign test by hand: of 12 differing rows 10 are won; P(10 or more, or 2 or fewer) = 2 * 79 / 4096."""
    one, other = [1] * 10 + [0] * 2, [0] * 10 + [1] * 2
    assert paired(column(one), column(other), share).p == pytest.approx(158 / 4096, abs=0.013)
    # 11 rows, 9 won: 2 * (1 + 11 + 55) / 2048.
    assert paired(column(one[1:]), column(other[1:]), share).p == 134 / 2048


def test_the_bootstrap_of_a_share_is_binomial():
    """14 of 20: a draw is Binomial(20, 0.7) / 20, whose 2.5 % and 97.5 % points are 10 and 18 of 20."""
    low, high = interval(column([1] * 14 + [0] * 6), share)
    assert (low, high) == pytest.approx((0.5, 0.9), abs=1e-9)


def test_all_right_is_no_certainty():
    """Clopper-Pearson of 10 of 10 by SciPy's binomtest: [0.6915, 1]; a bootstrap would say [1, 1]."""
    assert interval(column([1] * 10), share) == pytest.approx((0.6915028921812371, 1.0))
    assert interval(column([0] * 10), share) == pytest.approx((0.0, 1 - 0.6915028921812371))
    assert interval(column([1] * 10), mean) == (1.0, 1.0)  # no share: rubric points have no such bound


def test_figures_that_are_not_finite_are_none():
    assert point(column([1.0, np.nan]), mean) is None
    assert paired(column([1.0, np.inf]), column([1.0, 2.0]), mean) is None
    assert point(np.zeros((3, 2)), ratio) is None


VALUES = st.lists(st.tuples(*[st.floats(-100, 100, allow_nan=False)] * 2), min_size=2, max_size=30)


@given(VALUES, st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_laws(pairs, seed):
    one, other = (column(values) for values in zip(*pairs, strict=True))
    for figure in (mean, quantile(0.5), quantile(0.95)):
        low, high = interval(one, figure, seed)
        assert low <= point(one, figure) <= high
        assert one.min() - 1e-9 <= low
        assert high <= one.max() + 1e-9
        found, mirrored = paired(one, other, figure, seed), paired(other, one, figure, seed)
        assert found.difference == -mirrored.difference
        assert found.low <= found.difference <= found.high
        assert 0 < found.p <= 1
        assert paired(one, one, figure, seed) == (0, 0, 0, 1)
        assert paired(one, other, figure, seed) == found
        turned = paired(one[::-1], other[::-1], figure, seed)
        assert turned == found


@given(st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=1, max_size=20), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
@settings(max_examples=60, deadline=None)
def test_a_quantile_is_numpys(values, part):
    assert point(column(values), quantile(part)) == pytest.approx(np.quantile(values, part), abs=1e-9)


def test_a_quantile_of_a_draw_is_that_of_the_rows_drawn():
    counts = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=20)
    found = quantile(0.95)(column(X), counts.astype(float))
    assert found == pytest.approx([np.quantile(np.repeat(X, times), 0.95) for times in counts])


@pytest.mark.slow
def test_ten_thousand_rows_take_a_second_and_little_memory():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 10_000, 1))
    tracemalloc.start()
    try:
        started = time.perf_counter()
        interval(one, mean)
        paired(one, other, mean)
        seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < 20  # 1.2 s on two cores that do nothing else
    assert peak < 64 << 20


def test_nothing_is_found_where_there_is_nothing():
    """Of 200 comparisons of equal models about one in twenty falls under p = 0.05, and the intervals hold 0 nineteen times."""
    rng = np.random.default_rng(7)
    tested = [paired(*rng.integers(2, size=(2, 80, 1)).astype(float), share, seed) for seed in range(200)]
    assert 0.01 <= np.mean([found.p <= 0.05 for found in tested]) <= 0.09
    assert np.mean([found.low <= 0 <= found.high for found in tested]) >= 0.91


def test_what_differs_is_found():
    rng = np.random.default_rng(8)
    one, other = (rng.random((300, 1)) < chance for chance in (0.7, 0.5))
    found = paired(one.astype(float), other.astype(float), share)
    assert found.p < 0.001
    assert found.low > 0
