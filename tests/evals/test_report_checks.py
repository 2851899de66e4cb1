"""The gate's rules on golden cases, and every slip in what is required of a report."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_makes import paired, report, value

from mlxforge.core.errors import ConfigError
from mlxforge.evals.checks import hold, hold_tolerance, sign, widened
from mlxforge.evals.estimators import share
from mlxforge.evals.report import ModelInfo, Report
from mlxforge.evals.requirements import Path, read_bound, read_tolerance, resolve
from mlxforge.evals.statistics import paired as pair_test


def held(text, one, strict=False, **more):
    made = Report(models=[ModelInfo(label="m", name="m", kind="base")], results={"m": {"s": {"x": one}}})
    return hold(made, read_bound(f"m.x{text}", made), strict=strict, **more)


# Value with its interval, requirement -> (passed, passed when strict, within noise).
REQUIRED = [
    ((0.7, 0.65, 0.75), ">=0.6", (True, True, False)),
    ((0.7, 0.55, 0.80), ">=0.6", (True, False, True)),
    ((0.5, 0.40, 0.65), ">=0.6", (False, False, True)),
    ((0.5, 0.40, 0.55), ">=0.6", (False, False, False)),
    ((0.6, 0.6, 0.7), ">=0.6", (True, True, False)),
    ((0.6, 0.6, 0.7), ">0.6", (False, False, True)),
    ((0.1 + 0.2, 0.3, 0.4), "<=0.3", (True, False, True)),
    ((1.2, 1.1, 1.3), "<=1.3", (True, True, False)),
    ((1.2, 1.1, 1.3), "<1.3", (True, False, True)),
    ((1.2, 1.1, 1.3), "<1.1", (False, False, False)),
    ((1.0, 1.0, 1.0), "==1", (True, True, False)),
    ((1.0, 0.9, 1.0), "==1", (True, False, True)),
    ((0.9, 0.8, 0.95), " == 1.0 ", (False, False, False)),
]


@pytest.mark.parametrize(("figures", "text", "expected"), REQUIRED)
def test_requirements(figures, text, expected):
    check, strict = held(text, value(*figures)), held(text, value(*figures), strict=True)
    assert (check.passed, strict.passed, check.within_noise) == expected
    assert check.within_noise == strict.within_noise
    assert bool(check.why) == (check.within_noise or not check.passed)


def test_a_value_without_an_interval_is_taken_alone_and_that_is_told():
    for strict in (False, True):
        check = held("<=5", value(4.0), strict)
        assert check.passed
        assert check.why == "no interval: the value alone"


def test_what_was_not_measured_fails_and_says_why():
    check = held("<=5", value(None, why="tokenizers differ"))
    assert not check.passed
    assert check.why == "m has no value: tokenizers differ"


def harmed(figures, text, *, better="lower", strict=False, test=True, sides=True):
    difference, low, high = figures
    ends = (1.1, 1.3) if sides else (None, None)
    made = Report(
        results={
            "a": {"s": {"x": value(1.2, *ends, better=better)}},
            "b": {"s": {"x": value(1.2 + difference, *(one and one + difference for one in ends), better=better)}},
        },
        tests=[paired("s", "x", "b", "a", difference, low, high)] if test else [],
    )
    (one,) = read_tolerance(text, made, ["b"], None)
    return hold_tolerance(made, one, strict=strict)


# Difference with its interval (lower is better), tolerance -> (passed, passed when strict, within noise).
HARMED = [
    ((-0.10, -0.12, -0.08), "s.x:0.02", (True, True, False)),  # better
    ((0.01, 0.005, 0.015), "s.x:0.02", (True, True, False)),  # worse within the tolerance, surely
    ((0.01, -0.02, 0.04), "s.x:0.02", (True, False, True)),  # worse within the tolerance, perhaps
    ((0.05, -0.02, 0.12), "s.x:0.02", (True, False, True)),  # worse beyond it, unproved
    ((0.05, 0.03, 0.07), "s.x:0.02", (False, False, False)),  # worse beyond it, proved
    ((0.02, 0.02, 0.02), "s.x:0.02", (True, True, False)),  # just as much as may be
    ((0.01, 0.004, 0.016), "s.x:0", (False, False, False)),
    ((0.00, 0.0, 0.0), "x:0", (True, True, False)),
    ((0.05, 0.04, 0.06), "s.x:2%", (False, False, False)),  # 2 % of 1.2
    ((0.02, 0.018, 0.022), "s.x: 2 %", (True, True, False)),
]


@pytest.mark.parametrize(("figures", "text", "expected"), HARMED)
@pytest.mark.parametrize("better", ["lower", "higher"])
def test_regressions(figures, text, expected, better):
    if better == "higher":
        figures = (-figures[0], -figures[2], -figures[1])
    check, strict = (harmed(figures, text, better=better, strict=one) for one in (False, True))
    assert (check.passed, strict.passed, check.within_noise) == expected
    assert (check.value, check.low, check.high) == pytest.approx(figures)


def test_without_a_paired_test_both_intervals_count():
    check = harmed((0.05, 0, 0), "s.x:0.02", test=False)
    assert (check.low, check.high) == pytest.approx((0.05 - 0.02**0.5, 0.05 + 0.02**0.5))
    assert check.passed
    assert check.why == "within noise; no paired test: wider, from both intervals"
    assert not harmed((0.5, 0, 0), "s.x:0.02", test=False).passed


def test_without_any_interval_the_values_count():
    check = harmed((0.05, 0, 0), "s.x:0.02", test=False, sides=False)
    assert (check.passed, check.why) == (False, "no interval: the values alone")
    assert harmed((0.01, 0, 0), "s.x:0.02", test=False, sides=False).passed


def test_a_test_made_the_other_way_round_is_turned():
    made = report()
    (one,) = read_tolerance("retention.bpb:0.02", made, ["base"], "sft")
    check = hold_tolerance(made, one)
    assert (check.value, check.low, check.high) == (-0.03, -0.045, -0.015)
    assert check.passed


def test_wider_confidence_makes_wider_intervals():
    assert widened(1.0, 0.8, 1.1, 0.95) == pytest.approx((0.8, 1.1))
    assert widened(1.0, 0.8, 1.1, 0.99) == pytest.approx((1 - 0.2 * 2.5758 / 1.95996, 1 + 0.1 * 2.5758 / 1.95996), rel=1e-4)
    proved = (0.05, 0.03, 0.07)
    assert not harmed(proved, "s.x:0.02").passed
    made = report()
    (one,) = read_tolerance("retention.bpb:0.01", made, ["sft"], None)
    assert not hold_tolerance(made, one).passed
    assert hold_tolerance(made, one, confidence=0.999).within_noise


@given(st.floats(-5, 5), st.floats(0, 2), st.floats(0, 2), st.floats(0, 2))
def test_strict_never_passes_what_the_usual_rule_fails(difference, below, above, allowed):
    figures = (difference, difference - below, difference + above)
    text = f"s.x:{allowed:.6f}"
    usual, strict = harmed(figures, text), harmed(figures, text, strict=True)
    assert usual.passed or not strict.passed
    assert (usual.passed and not strict.passed) == usual.within_noise


@given(st.floats(-5, 5), st.floats(0, 2), st.floats(0, 2), st.floats(-3, 3), st.sampled_from([">=", "<=", ">", "<"]))
def test_strict_never_meets_what_the_value_misses(one, below, above, bound, comparison):
    text, figures = f"{comparison}{bound:.6f}", value(one, one - below, one + above)
    usual, strict = held(text, figures), held(text, figures, True)
    assert usual.passed or not strict.passed
    assert usual.within_noise == (strict.passed != usual.passed) or not usual.passed


def test_equal_but_for_rounding_is_equal():
    assert sign(1.22 - 1.2, 0.02) == 0
    assert (sign(0.6001, 0.6), sign(0.5999, 0.6)) == (1, -1)


def test_figures_are_found_by_label_and_by_stage():
    made = report()
    assert resolve(made, "sft.exact_match", "") == Path("sft", "handbook", "exact_match")
    assert resolve(made, "base.retention.bpb", "") == Path("base", "retention", "bpb")
    made.models[2] = ModelInfo(label="final", name="run:b", kind="run", stage="sft")
    made.results["final"] = made.results.pop("sft")
    assert resolve(made, "sft.exact_match", "") == Path("final", "handbook", "exact_match")
    assert read_tolerance("sft.retention.bpb:0", made, ["cpt"], None)[0].path.label == "final"


def test_names_may_have_dots():
    made = Report(results={"a": {"b.c": {"x": value(1)}}, "a.b": {"c": {"x": value(2)}, "d": {"y": value(3)}}})
    assert resolve(made, "a.b.y", "") == Path("a.b", "d", "y")
    with pytest.raises(ConfigError, match="may mean several figures"):
        resolve(made, "a.b.c.x", "")


SLIPS = [
    ("sft.exact_match", "character 16: no comparison", "quote it"),
    ("sft.exact_match=0.6", "character 16: '=' is no comparison", "did you mean '=='?"),
    ("sft.exact_match=>0.6", "character 16: '=>' is no comparison", "did you mean '>='?"),
    ("sft.exact_match<>0.6", "character 16: '<>' is no comparison", "one of >= <= > < =="),
    ("sft.exact_match>=", "character 18: no number", "0.6"),
    ("sft.exact_match>=0,6", "character 18: no number: '0,6'", "0.6"),
    ("sft.exact_match>=nan", "character 18: no number: 'nan'", "0.6"),
    (">=0.6", "character 1: no figure", "LABEL.METRIC"),
    ("stf.exact_match>=0.6", "no model 'stf' in the report", "did you mean 'sft'?"),
    ("sft.exact_mach>=0.6", "no figure 'exact_mach' of 'sft'", "did you mean 'exact_match'?"),
    ("sft.handbok.bleu>=0.6", "no figure 'handbok.bleu' of 'sft'", "did you mean 'handbook.bleu'?"),
    ("sft>=0.6", "'sft' is a model, not a figure", "LABEL.METRIC"),
]


@pytest.mark.parametrize(("text", "what", "fix"), SLIPS)
def test_slips_are_told_with_their_place(text, what, fix):
    with pytest.raises(ConfigError) as raised:
        read_bound(text, report())
    assert raised.value.what == what
    assert fix in raised.value.fix
    assert raised.value.where == f"--require '{text}'"


TOLERANCES = [
    ("retention.bpb", {}, "character 14: no ':' and tolerance", "SET.METRIC:0.02"),
    ("retention.bpb:x", {}, "character 15: no number: 'x'", "0.6"),
    ("retention.bpb:-1", {}, "character 15: a tolerance is not below 0", ""),
    (":0.1", {}, "character 1: no figure", "SET.METRIC:0.02"),
    ("retenton.bpb:0", {}, "no figure 'retenton.bpb' in the report", "did you mean 'retention.bpb'?"),
    ("bpb:0", {"against": "sft"}, "'sft' is held against itself", "--against LABEL"),
    ("bpb:0", {"against": "stf"}, "no model 'stf' in the report", "did you mean 'sft'?"),
]


@pytest.mark.parametrize(("text", "more", "what", "fix"), TOLERANCES)
def test_slips_of_tolerances(text, more, what, fix):
    with pytest.raises(ConfigError) as raised:
        read_tolerance(text, report(), ["sft"], more.get("against"))
    assert raised.value.what == what
    assert fix in raised.value.fix


def test_what_may_mean_several_figures_is_refused():
    made = report()
    made.results["sft"]["other"] = {"bpb": value(1.0, better="lower")}
    with pytest.raises(ConfigError, match="may mean several") as raised:
        read_bound("sft.bpb<=2", made)
    assert raised.value.fix == "name 'sft.retention.bpb' or 'sft.other.bpb'"
    with pytest.raises(ConfigError, match="may mean several") as raised:
        read_tolerance("bpb:0", made, ["sft"], None)
    assert raised.value.fix == "name 'retention.bpb' or 'other.bpb'"
    made.models.append(ModelInfo(label="sft-2", name="x", kind="run", stage="cpt"))
    made.results["sft-2"] = {"handbook": {"bleu": value(1)}}
    made.models[1] = ModelInfo(label="first", name="run:a", kind="run", stage="cpt")
    made.results["first"] = made.results.pop("cpt")
    with pytest.raises(ConfigError, match="2 models have the stage 'cpt'"):
        read_bound("cpt.handbook.bleu>=0", made)


def test_a_figure_without_a_good_direction_is_refused():
    made = Report(results={"a": {"s": {"x": value(1, better="")}}, "b": {"s": {"x": value(1, better="")}}})
    with pytest.raises(ConfigError, match="has no better direction"):
        read_tolerance("x:0", made, ["b"], None)


def test_a_figure_that_one_model_lacks_is_told():
    made = report()
    made.results["sft"].pop("retention")
    with pytest.raises(ConfigError, match=r"'sft' has no figure 'retention\.bpb'"):
        read_tolerance("retention.bpb:0", made, ["sft"], None)


def drawn(rng, rows, loss, allowed):
    """Whether a drawn pair of models fails ``x:allowed``, as usual and when strict; the second one has lost a share."""
    first = (rng.random(rows) < 0.6).astype(float)
    second = np.where(rng.random(rows) < 0.2, rng.random(rows) < 0.6, first).astype(float)
    second[(second == 1) & (rng.random(rows) < loss / 0.6)] = 0.0
    found = pair_test(second[:, None], first[:, None], share)
    figures = {label: {"s": {"x": value(float(one.mean()))}} for label, one in (("a", first), ("b", second))}
    made = Report(results=figures, tests=[paired("s", "x", "b", "a", **found._asdict(), n=rows)])
    (one,) = read_tolerance(f"x:{allowed}", made, ["b"], None)
    return [not hold_tolerance(made, one, strict=strict).passed for strict in (False, True)]


# rows, share lost, tolerance -> bounds of the share that fails, as usual and when strict (docs/gate.md)
POWER = [
    (120, 0.0, 0.0, (0.0, 0.06), (0.9, 1.0)),
    (500, 0.0, 0.02, (0.0, 0.02), (0.5, 0.8)),
    (500, 0.02, 0.02, (0.0, 0.06), (0.92, 1.0)),
    (120, 0.1, 0.02, (0.45, 0.75), (0.98, 1.0)),
    (500, 0.1, 0.02, (0.95, 1.0), (1.0, 1.0)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "loss", "allowed", "usual", "strict"), POWER)
def test_how_often_a_regression_is_found(rows, loss, allowed, usual, strict):
    rng = np.random.default_rng(0)
    shares = np.mean([drawn(rng, rows, loss, allowed) for _ in range(150)], axis=0)
    for found, (low, high) in zip(shares, (usual, strict), strict=True):
        assert low <= found <= high, shares
