"""Metrics of log-probabilities, by hand."""

from __future__ import annotations

import math
import statistics

import pytest

from mlxforge.evals.graded import Graded, Likelihood, Timing
from mlxforge.evals.metrics import METRICS, column, compare, value


def figure(name, graded):
    return value(column(METRICS[name], graded)).value


def texts(*found):
    return [Graded(likelihood=Likelihood(*one)) for one in found]


def costs(*found, right=0):
    """A row whose continuations cost these nats, of 10 bytes each unless (nats, bytes) are given."""
    pairs = [one if isinstance(one, tuple) else (one, 10) for one in found]
    return Graded(continuations=tuple(Likelihood(nats, 3, size) for nats, size in pairs), right=right)


def test_perplexity_and_bpb_are_sums_over_sums():
    graded = texts((math.log(2) * 6, 2, 12), (math.log(2) * 2, 2, 4))
    assert figure("perplexity", graded) == pytest.approx(2 ** (8 / 4))  # not the mean of 2^3 and 2^1
    assert figure("bpb", graded) == pytest.approx(8 / 16)
    assert column(METRICS["perplexity"], graded).scores() == pytest.approx([8, 2])
    assert column(METRICS["bpb"], graded).scores() == pytest.approx([0.5, 0.5])


def test_a_text_in_pieces_is_as_likely_as_whole():
    whole, pieces = texts((30.0, 10, 40)), texts((10.0, 4, 15), (20.0, 6, 25))
    for name in ("perplexity", "bpb"):
        assert figure(name, whole) == pytest.approx(figure(name, pieces))


def test_twice_the_same_rows_are_the_same_figure():
    graded = texts((30.0, 10, 40), (12.0, 5, 30), (9.0, 2, 8))
    assert figure("bpb", graded * 2) == pytest.approx(figure("bpb", graded))
    narrow, wide = value(column(METRICS["bpb"], graded * 40)), value(column(METRICS["bpb"], graded * 4))
    assert narrow.high - narrow.low < wide.high - wide.low


def test_choices_by_hand():
    graded = [costs(3, 1, 2, right=1), costs(3, 1, 2, right=0), costs(1, 1, 2, right=0), costs(2, 2, 2, 2, right=3)]
    assert column(METRICS["choice_accuracy"], graded).scores() == [1, 0, 0.5, 0.25]


def test_a_long_choice_is_not_at_a_disadvantage_by_byte():
    graded = [costs((4.0, 4), (6.0, 12), right=1)]
    assert figure("choice_accuracy", graded) == 0
    assert figure("choice_accuracy_norm", graded) == 1


def test_preferences_by_hand():
    graded = [costs(2.0, 5.0), costs(5.0, 2.5), costs(4.0, 4.0)]
    assert column(METRICS["preference_accuracy"], graded).scores() == [1, 0, 0.5]
    assert column(METRICS["preference_margin"], graded).scores() == [3, -2.5, 0]
    assert figure("preference_margin", graded) == pytest.approx(0.5 / 3)


def test_turned_round_pairs_give_the_complement():
    pairs = [(2.0, 5.0), (5.0, 2.5), (4.0, 4.0), (1.0, 7.0)]
    straight, turned = ([costs(*pair) for pair in found] for found in (pairs, [pair[::-1] for pair in pairs]))
    assert figure("preference_accuracy", straight) == 1 - figure("preference_accuracy", turned)
    assert figure("preference_margin", straight) == -figure("preference_margin", turned)


@pytest.mark.parametrize("name", ["choice_accuracy", "preference_accuracy", "preference_margin"])
def test_what_is_not_a_number_is_no_figure(name):
    found = value(column(METRICS[name], [costs(math.nan, 1.0), costs(2.0, 1.0)]))
    assert (found.value, found.low, found.n) == (None, None, 2)
    assert "finite" in found.why


def test_an_impossible_choice_is_not_chosen():
    assert figure("choice_accuracy", [costs(math.inf, 2.0, right=1)]) == 1


def test_a_broken_model_has_an_infinite_perplexity_and_no_figure():
    found = value(column(METRICS["perplexity"], texts((1e6, 2, 12), (1.0, 2, 12))))
    assert found.value is None


def test_latency_by_hand():
    seconds = [0.4, 0.1, 0.2, 0.3, 2.0]
    graded = [Graded(timing=Timing(one, one + 1.5, 4)) for one in seconds]
    assert figure("ttft_p50", graded) == pytest.approx(statistics.median(seconds))
    assert figure("ttft_p95", graded) == pytest.approx(0.4 + 0.8 * 1.6)  # place 0.95 * 4 of five: 0.8 behind the fourth
    assert figure("latency_p50", graded) == pytest.approx(1.8)
    assert figure("tokens_per_second", graded) == pytest.approx(2.0)  # three tokens behind the first in 1.5 s


def test_an_answer_of_one_token_has_no_speed():
    found = value(column(METRICS["tokens_per_second"], [Graded(timing=Timing(0.1, 0.1, 1))]))
    assert found.value is None
    assert found.why


def test_one_row_has_a_figure_and_no_interval():
    found = value(column(METRICS["preference_accuracy"], [costs(1.0, 2.0)]))
    assert (found.value, found.low, found.high, found.n) == (1, None, None, 1)


def test_only_rows_that_both_models_have_are_compared():
    one, other = [costs(1.0, 2.0), costs(2.0, 1.0), costs(1.0, 3.0)], [costs(1.0, 2.0), Graded(), costs(3.0, 1.0)]
    name = METRICS["preference_accuracy"]
    tested = compare(column(name, one), column(name, other), "pairs", "a", "b")
    assert (tested.n, tested.difference) == (2, 0.5)
    assert compare(column(name, one), column(name, [Graded()] * 3), "pairs", "a", "b") is None
