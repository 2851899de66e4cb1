"""Losses and metrics of preferences: by hand, beside the papers' formulas in numpy, and the laws that they keep."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlxforge.core.config import walk
from mlxforge.core.settings import CpoConfig, CptConfig, DpoConfig, KtoConfig, OrpoConfig, SimpoConfig
from mlxforge.training.preference import (
    DPO_VARIANTS,
    PAIR_LOSSES,
    Answers,
    Pairs,
    kl_baseline,
    kto_loss,
    kto_metrics,
    length_bias,
    pair_metrics,
    unused,
)

LN2 = math.log(2)


def arrays(*columns):
    return [mx.array(np.asarray(column, np.float32)) for column in columns]


def pair(chosen, rejected, tokens=(2, 4), reference=(0.0, 0.0)):
    return Pairs(*arrays([chosen], [rejected], [tokens[0]], [tokens[1]], [reference[0]], [reference[1]]))


def objective(settings):
    names = {DpoConfig: "dpo", OrpoConfig: "orpo", SimpoConfig: "simpo", CpoConfig: "cpo"}
    return PAIR_LOSSES[names[type(settings)]](settings)


# Ratios to the reference: +1 of the chosen answer (2 tokens), -1 of the rejected one (4 tokens). With beta 0.5 the rewards are
# +0.5 and -0.5, and the margin is 1. ln(1 + e^-1) = 0.3132617 and ln(1 + e^1) = 1.3132617.
UP = pair(-4, -6, reference=(-5, -5))
# The chosen answer fell as well: ratios -0.5 and -1.
DOWN = pair(-5.5, -6, reference=(-5, -5))

GOLDEN = [
    (DpoConfig(beta=0.5), UP, 0.3132617),
    # 0.9 x 0.3132617 + 0.1 x 1.3132617
    (DpoConfig(beta=0.5, label_smoothing=0.1), UP, 0.4132617),
    # 0.3132617 + 0.25 x 4 / 2
    (DpoConfig(beta=0.5, sft_weight=0.25), UP, 0.8132617),
    # 1 - 0.25 x 2
    (DpoConfig(loss="hinge", beta=0.25), UP, 0.5),
    # The margin of 2 is beyond 1.
    (DpoConfig(loss="hinge", beta=1.0), UP, 0.0),
    # (1/2 + 1/4 - 1 / (2 x 0.5))^2
    (DpoConfig(loss="ipo", beta=0.5), UP, 0.0625),
    (DpoConfig(loss="robust", beta=0.5), UP, 0.3132617),
    # (0.9 x 0.3132617 - 0.1 x 1.3132617) / 0.8
    (DpoConfig(loss="robust", beta=0.5, label_smoothing=0.1), UP, 0.1882617),
    # (1 - sigmoid(0.5)) + sigmoid(-0.5) = 2 x 0.3775407
    (DpoConfig(loss="apo_zero", beta=0.5), UP, 0.7550813),
    # The chosen answer rose: no penalty.
    (DpoConfig(loss="dpop", beta=0.5, dpop_weight=2.0), UP, 0.3132617),
    # 0.5 x (-0.5 + 1 - 2 x 0.5) = -0.25, and ln(1 + e^0.25)
    (DpoConfig(loss="dpop", beta=0.5, dpop_weight=2.0), DOWN, 0.8259394),
    # 0.7310586 x (-0.3132617 - ln 0.9) + 0.2689414 x (-1.3132617 - ln 0.1)
    (DpoConfig(loss="exo", beta=0.5, label_smoothing=0.1), UP, 0.1140820),
    # The same with 0.999 and 0.001: 0.7310586 x -0.3122612 + 0.2689414 x 5.5944936
    (DpoConfig(loss="exo", beta=0.5), UP, 1.2763097),
    # ln(1 + e^-0.5) + (ln(1 + e^0.5) + ln(1 + e^-0.5)) / 2 = 1.5 x 0.4740770 + 0.5 x 0.9740770
    (DpoConfig(loss="nca", beta=0.5), UP, 1.1981540),
    # Probabilities a token 0.8 and 0.5, odds 4 and 1: -ln 0.8 + 0.5 x ln(1 + 1/4) = 1.5 x 0.2231436
    (OrpoConfig(beta=0.5), pair(2 * math.log(0.8), 4 * math.log(0.5)), 0.3347153),
    # Log-probabilities a token -2 and -1.5: 2 x -0.5 - 0.5 = -1.5, and ln(1 + e^1.5)
    (SimpoConfig(beta=2.0, gamma=0.5), UP, 1.7014133),
    # 1.7014133 + 0.5 x 2
    (SimpoConfig(beta=2.0, gamma=0.5, sft_weight=0.5), UP, 2.7014133),
    # 0.5 x (-4 + 6) = 1: 0.3132617 + 4 / 2, whatever the reference
    (CpoConfig(beta=0.5), UP, 2.3132617),
]


def label(value):
    return f"{type(value).__name__[:-6]}-{getattr(value, 'loss', '')}" if hasattr(value, "beta") else ""


@pytest.mark.parametrize(("settings", "pairs", "expected"), GOLDEN, ids=label)
def test_golden_values(settings, pairs, expected):
    loss = objective(settings)(pairs)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, abs=2e-7, rel=2e-6)


def test_golden_values_of_kto():
    # Ratios +1 (desirable) and -1 (undesirable); mismatched ratios 0.5 and -0.1, so that the baseline is 0.2.
    answers = Answers(*arrays([-4, -6], [2, 4]), mx.array([True, False]), *arrays([-5, -5], [-3, -4], [-3.5, -3.9]))
    settings = KtoConfig(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    assert kl_baseline(answers).item() == pytest.approx(0.2, rel=1e-5)
    # 2 x sigmoid(-0.5 x 0.8) = 2 x 0.4013123 and 3 x sigmoid(0.5 x -1.2) = 3 x 0.3543437
    assert kto_loss(settings)(answers).tolist() == pytest.approx([0.8026247, 1.0630310], rel=1e-5)
    # A mean below 0 is taken as 0: 2 x sigmoid(-0.5) and 3 x sigmoid(-0.5), sigmoid(-0.5) = 0.3775407
    lower = answers._replace(mismatched=answers.reference_mismatched - 1)
    assert kl_baseline(lower).item() == 0
    assert kto_loss(settings)(lower).tolist() == pytest.approx([0.7550813, 1.1326220], rel=1e-5)


# The formulas as the papers print them, in float64, with probabilities and logarithms of sigmoids.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def np_dpo(s, p):
    ratio_w, ratio_l = np.exp(p.chosen - p.reference_chosen), np.exp(p.rejected - p.reference_rejected)
    h, eps, beta = np.log(ratio_w / ratio_l), s.label_smoothing, s.beta
    target = eps if eps else 1e-3
    average = np.log(ratio_w) / p.chosen_tokens - np.log(ratio_l) / p.rejected_tokens
    return {
        "sigmoid": -(1 - eps) * np.log(sigmoid(beta * h)) - eps * np.log(sigmoid(-beta * h)),
        "robust": (-(1 - eps) * np.log(sigmoid(beta * h)) + eps * np.log(sigmoid(-beta * h))) / (1 - 2 * eps),
        "hinge": np.where(beta * h < 1, 1 - beta * h, 0),
        "ipo": (average - 1 / (2 * beta)) ** 2,
        "apo_zero": 1 - sigmoid(beta * np.log(ratio_w)) + sigmoid(beta * np.log(ratio_l)),
        "dpop": -np.log(sigmoid(beta * (h - s.dpop_weight * np.maximum(0, np.log(1 / ratio_w))))),
        "exo": sum(q * np.log(q / of) for q, of in ((sigmoid(beta * h), 1 - target), (1 - sigmoid(beta * h), target))),
        "nca": -np.log(sigmoid(beta * np.log(ratio_w)))
        - sum(np.log(1 - sigmoid(beta * np.log(ratio))) for ratio in (ratio_w, ratio_l)) / 2,
    }[s.loss] - s.sft_weight * p.chosen / p.chosen_tokens


def np_orpo(s, p):
    w, l = (np.exp(p.chosen / p.chosen_tokens), np.exp(p.rejected / p.rejected_tokens))  # noqa: E741 - the papers' letters
    odds_ratio = (w / (1 - w)) / (l / (1 - l))
    return -np.log(w) - s.beta * np.log(sigmoid(np.log(odds_ratio)))


def np_simpo(s, p):
    gap = s.beta / p.chosen_tokens * p.chosen - s.beta / p.rejected_tokens * p.rejected - s.gamma
    return -np.log(sigmoid(gap)) - s.sft_weight * p.chosen / p.chosen_tokens


def np_cpo(s, p):
    return -np.log(sigmoid(s.beta * p.chosen - s.beta * p.rejected)) - s.sft_weight * p.chosen / p.chosen_tokens


def np_kto(s, a):
    z0 = max(0.0, float(np.mean(a.mismatched - a.reference_mismatched)))
    reward = a.logps - a.reference
    value = np.where(a.desirable, sigmoid(s.beta * (reward - z0)), sigmoid(s.beta * (z0 - reward)))
    return np.where(a.desirable, s.desirable_weight, s.undesirable_weight) * (1 - value)


FORMULAS = {DpoConfig: np_dpo, OrpoConfig: np_orpo, SimpoConfig: np_simpo, CpoConfig: np_cpo}
SETTINGS = [
    *(DpoConfig(loss=loss, beta=0.3, dpop_weight=3.0) for loss in DPO_VARIANTS),
    *(DpoConfig(loss=loss, label_smoothing=0.2, sft_weight=0.5) for loss in ("sigmoid", "robust", "exo", "ipo")),
    OrpoConfig(beta=0.7),
    SimpoConfig(beta=2.5, gamma=0.4, sft_weight=0.2),
    CpoConfig(beta=0.2, sft_weight=0.6),
]


def random_pairs(count=16, seed=3):
    """In float64, rounded to what float32 holds: both implementations then read the same numbers."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 40, (2, count))
    logps = -tokens * rng.uniform(0.05, 0.7, (2, count))
    reference = logps + rng.normal(0, 2, (2, count))
    return Pairs(*(x.astype(np.float32).astype(np.float64) for x in (*logps, *tokens, *reference)))


def random_answers(count=16, seed=4):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 40, count)
    logps = -tokens * rng.uniform(0.05, 0.7, count)
    reference = logps + rng.normal(0, 2, count)
    drift = rng.normal(0.8, 1, count)
    columns = [x.astype(np.float32).astype(np.float64) for x in (logps, tokens, reference, logps + drift, logps)]
    return Answers(*columns[:2], rng.random(count) < 0.5, *columns[2:])


def to_mlx(rows):
    return type(rows)(*(mx.array(x if x.dtype == bool else x.astype(np.float32)) for x in rows))


@pytest.mark.parametrize("settings", SETTINGS, ids=label)
def test_values_are_those_of_the_papers(settings):
    pairs = random_pairs()
    expected = FORMULAS[type(settings)](settings, pairs)
    np.testing.assert_allclose(np.array(objective(settings)(to_mlx(pairs))), expected, rtol=2e-5, atol=2e-6)


def test_values_of_kto_are_those_of_the_paper():
    settings, answers = KtoConfig(beta=0.3, desirable_weight=1.2, undesirable_weight=0.7), random_answers()
    assert kl_baseline(to_mlx(answers)).item() > 0
    np.testing.assert_allclose(np.array(kto_loss(settings)(to_mlx(answers))), np_kto(settings, answers), rtol=2e-5)


def differences(function, rows, field, step=1e-5):
    """Central differences, row by row at once: no row's value depends on another row's."""
    values = getattr(rows, field)
    up, down = (function(rows._replace(**{field: values + delta})) for delta in (step, -step))
    return (up - down) / (2 * step)


def gradient(loss, rows, field):
    return np.array(mx.grad(lambda x: loss(rows._replace(**{field: x})).sum())(getattr(rows, field)))


@pytest.mark.parametrize("settings", SETTINGS, ids=label)
@pytest.mark.parametrize("field", ["chosen", "rejected"])
def test_gradients_are_finite_differences(settings, field):
    pairs = random_pairs()
    expected = differences(lambda p: FORMULAS[type(settings)](settings, p), pairs, field)
    np.testing.assert_allclose(gradient(objective(settings), to_mlx(pairs), field), expected, rtol=2e-4, atol=2e-6)


def test_gradients_of_kto_are_finite_differences_and_leave_the_baseline_alone():
    settings, answers = KtoConfig(beta=0.3, desirable_weight=1.2, undesirable_weight=0.7), random_answers()
    expected = differences(lambda a: np_kto(settings, a), answers, "logps")
    np.testing.assert_allclose(gradient(kto_loss(settings), to_mlx(answers), "logps"), expected, rtol=2e-4, atol=2e-6)
    assert not gradient(kto_loss(settings), to_mlx(answers), "mismatched").any()


def test_a_policy_that_is_its_reference_starts_at_a_known_loss():
    pairs = to_mlx(random_pairs())
    same = pairs._replace(chosen=pairs.reference_chosen, rejected=pairs.reference_rejected)
    start = {
        "sigmoid": LN2,
        "hinge": 1.0,
        "ipo": 25.0,
        "robust": LN2,
        "apo_zero": 1.0,
        "dpop": LN2,
        "exo": -LN2 - math.log(0.999 * 0.001) / 2,
        "nca": 2 * LN2,
    }
    for loss in DPO_VARIANTS:
        np.testing.assert_allclose(np.array(PAIR_LOSSES["dpo"](DpoConfig(loss=loss))(same)), start[loss], rtol=1e-6)
    metrics = pair_metrics(same, DpoConfig())
    assert set(np.array(metrics["accuracy"])) == {0.5}
    assert not np.array(metrics["kl"]).any()


def test_the_gradient_of_dpo_through_a_model():
    """A table of next-token logits is the model: d loss = -beta sigmoid(-margin) (d log p(chosen) - d log p(rejected))."""
    mx.random.seed(0)
    table, reference = mx.random.normal((5, 5)), mx.random.normal((5, 5))
    chosen, rejected = mx.array([0, 3, 1, 4]), mx.array([0, 2, 2])

    def logp(table, tokens):
        rows = table[tokens[:-1]]
        return (mx.take_along_axis(rows, tokens[1:, None], 1)[:, 0] - mx.logsumexp(rows, 1)).sum()

    def loss(table):
        sums = [logp(table, chosen), logp(table, rejected), mx.array(3), mx.array(2)]
        pairs = Pairs(*(x[None] for x in (*sums, logp(reference, chosen), logp(reference, rejected))))
        return PAIR_LOSSES["dpo"](DpoConfig(beta=0.4))(pairs).sum()

    gap = logp(table, chosen) - logp(table, rejected) - logp(reference, chosen) + logp(reference, rejected)
    expected = -0.4 * mx.sigmoid(-0.4 * gap) * mx.grad(lambda t: logp(t, chosen) - logp(t, rejected))(table)
    np.testing.assert_allclose(np.array(mx.grad(loss)(table)), np.array(expected), atol=1e-6)
    assert loss(reference).item() == pytest.approx(LN2, rel=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=label)
def test_a_pair_alone_is_the_pair_in_a_batch(settings):
    pairs = to_mlx(random_pairs())
    whole, metrics = np.array(objective(settings)(pairs)), pair_metrics(pairs, settings)
    for i in (0, 7):
        alone = Pairs(*(x[i : i + 1] for x in pairs))
        assert objective(settings)(alone).item() == pytest.approx(float(whole[i]), rel=1e-6)
        for name, values in pair_metrics(alone, settings).items():
            assert values.item() == pytest.approx(metrics[name][i].item(), rel=1e-6), name


def test_an_answer_of_kto_depends_on_others_by_the_baseline_alone():
    settings, answers = KtoConfig(), to_mlx(random_answers())
    whole, metrics = np.array(kto_loss(settings)(answers)), kto_metrics(answers, settings)
    for i in (0, 7):
        # The baseline of the batch, given to one answer: the arrays of the baseline keep their length.
        alone = Answers(*(x[i : i + 1] for x in answers[:4]), answers.mismatched, answers.reference_mismatched)
        assert kto_loss(settings)(alone).item() == pytest.approx(float(whole[i]), rel=1e-6)
        for name, values in kto_metrics(alone, settings).items():
            assert values.item() == pytest.approx(metrics[name][i].item(), rel=1e-6), name
    other = answers._replace(mismatched=answers.mismatched + 1)
    assert not np.allclose(np.array(kto_loss(settings)(other)), whole)


EXTREMES = [0.0, -1e-7, -1e-3, -10.0, -1e4]


@pytest.mark.parametrize("settings", SETTINGS, ids=label)
def test_no_pair_gives_a_loss_or_a_gradient_that_is_not_finite(settings):
    grid = np.array(np.meshgrid(EXTREMES, EXTREMES, EXTREMES, EXTREMES)).reshape(4, -1)
    ones = np.ones_like(grid[0])
    pairs = Pairs(*arrays(grid[0], grid[1], ones, 3 * ones, grid[2], grid[3]))
    assert np.isfinite(np.array(objective(settings)(pairs))).all()
    for field in ("chosen", "rejected"):
        assert np.isfinite(gradient(objective(settings), pairs, field)).all()


def test_no_answer_gives_a_loss_or_a_gradient_that_is_not_finite():
    logps, reference = np.array(np.meshgrid(EXTREMES, EXTREMES)).reshape(2, -1)
    answers = Answers(*arrays(logps, np.ones_like(logps)), mx.array(logps < -1), *arrays(reference, logps, reference))
    assert np.isfinite(np.array(kto_loss(KtoConfig())(answers))).all()
    assert np.isfinite(gradient(kto_loss(KtoConfig()), answers, "logps")).all()


def test_large_margins_meet_their_asymptotes():
    far = Pairs(*arrays([0, -1e4], [-1e4, 0], [9, 9], [9, 9], [0, 0], [0, 0]))
    expected = {
        "sigmoid": [0, 1000],
        "hinge": [0, 1001],
        # Beside 1 / (2 x 0.1) = 5 a token: (1e4 / 9 - 5)^2 and (-1e4 / 9 - 5)^2
        "ipo": [(1e4 / 9 - 5) ** 2, (1e4 / 9 + 5) ** 2],
        "robust": [0, 1000],
        "apo_zero": [0.5 + 0, 1 + 0.5],
        # A chosen answer that fell by 1e4 costs 50 times that again.
        "dpop": [0, 51000],
        # Certain, and right or wrong where the label says 0.999.
        "exo": [-math.log(0.999), -math.log(0.001)],
        "nca": [LN2 + (LN2 + 0) / 2, 1000 + (0 + LN2) / 2],
    }
    for loss, values in expected.items():
        assert PAIR_LOSSES["dpo"](DpoConfig(loss=loss))(far).tolist() == pytest.approx(values, rel=1e-6), loss
    assert PAIR_LOSSES["cpo"](CpoConfig(beta=0.1, sft_weight=0))(far).tolist() == [0, 1000]


def test_orpo_pushes_even_an_answer_of_probability_one():
    chosen, rejected = (gradient(objective(OrpoConfig()), pair(0.0, 0.0), field)[0] for field in ("chosen", "rejected"))
    assert chosen < 0 < rejected


READS = {
    *((name, loss) for loss in DPO_VARIANTS for name in ("beta", "sft_weight")),
    *(("label_smoothing", loss) for loss in ("sigmoid", "robust", "exo")),
    ("dpop_weight", "dpop"),
}


@pytest.mark.parametrize("loss", list(DPO_VARIANTS))
def test_a_setting_of_dpo_changes_the_loss_or_is_named_as_unused(loss):
    pairs = to_mlx(random_pairs())
    before = np.array(objective(DpoConfig(loss=loss))(pairs))
    for name, value in {"beta": 0.7, "sft_weight": 0.7, "label_smoothing": 0.3, "dpop_weight": 9.0}.items():
        settings = DpoConfig(**{"loss": loss, name: value})
        changed = not np.array_equal(np.array(objective(settings)(pairs)), before)
        assert changed == ((name, loss) in READS), name
        assert unused(settings) == ([] if changed else [name])


@pytest.mark.parametrize("kind", [OrpoConfig, SimpoConfig, CpoConfig])
def test_every_setting_of_the_others_changes_the_loss(kind):
    pairs = to_mlx(random_pairs())
    names = {"beta", "gamma", "sft_weight"} & {key for key, _, _ in walk(kind)}
    for name in names:
        settings = kind(**{name: 0.33})
        assert not np.allclose(np.array(objective(settings)(pairs)), np.array(objective(kind())(pairs))), name
        assert unused(settings) == []


def test_every_setting_of_kto_changes_the_loss():
    answers = to_mlx(random_answers())
    for name in ("beta", "desirable_weight", "undesirable_weight"):
        settings = KtoConfig(**{name: 0.33})
        assert not np.allclose(np.array(kto_loss(settings)(answers)), np.array(kto_loss(KtoConfig())(answers))), name
        assert unused(settings) == []


def test_what_is_unused():
    both = DpoConfig(loss="ipo", label_smoothing=0.1, dpop_weight=1.0)
    assert unused(both) == ["label_smoothing", "dpop_weight"]
    assert unused(DpoConfig()) == unused(CptConfig()) == []


def test_golden_metrics():
    # beta 0.5: rewards 0.5 x 1 and 0.5 x -1; KL (1 - 1) / 2; lengths 2 - 4.
    metrics = {name: value.item() for name, value in pair_metrics(UP, DpoConfig(beta=0.5)).items()}
    assert metrics == {
        "reward_chosen": 0.5,
        "reward_rejected": -0.5,
        "margin": 1.0,
        "accuracy": 1.0,
        "logp_chosen": -4.0,
        "logp_rejected": -6.0,
        "length_difference": -2.0,
        "length_bias": 0.0,  # the shorter answer is preferred, and it is the chosen one
        "kl": 0.0,
    }
    # Ratios -0.5 and -1.
    assert pair_metrics(DOWN, DpoConfig())["kl"].item() == -0.75
    rewards = [
        # 0.5 x 1 / 2 and 0.5 x -1 / 4: what IPO compares is a token's.
        (DpoConfig(loss="ipo", beta=0.5), 0.25, -0.125, 1),
        # 0.5 x -4 / 2 and 0.5 x -6 / 4
        (OrpoConfig(beta=0.5), -1.0, -0.75, 0),
        (SimpoConfig(beta=0.5), -1.0, -0.75, 0),
        # 0.5 x -4 and 0.5 x -6
        (CpoConfig(beta=0.5), -2.0, -3.0, 1),
    ]
    bare = UP._replace(reference_chosen=mx.zeros(1), reference_rejected=mx.zeros(1))
    for settings, chosen, rejected, accuracy in rewards:
        metrics = pair_metrics(UP if isinstance(settings, DpoConfig) else bare, settings)
        assert metrics["reward_chosen"].item() == chosen
        assert metrics["reward_rejected"].item() == rejected
        assert metrics["accuracy"].item() == accuracy
        assert ("kl" in metrics) == isinstance(settings, DpoConfig)


def test_golden_metrics_of_kto():
    # Ratios +1, -1, +2 and 0, the second and third undesirable, beta 0.5; the baseline is 0.3 without regard to the labels.
    answers = Answers(
        *arrays([-4, -6, -1, -2], [2, 4, 2, 2]),
        mx.array([True, False, False, True]),
        *arrays([-5, -5, -3, -2], [0.3] * 4, [0.0] * 4),
    )
    metrics = {name: value.tolist() for name, value in kto_metrics(answers, KtoConfig(beta=0.5)).items()}
    assert metrics == {
        "reward_chosen": [0.5, 0, 0, 0],
        "reward_rejected": [0, -0.5, 1, 0],
        "margin": [0.5, 0.5, -1, 0],
        "accuracy": [1, 1, 0, 0.5],
        "logp_chosen": [-4, 0, 0, -2],
        "logp_rejected": [0, -6, -1, 0],
        "kl": [1, -1, 2, 0],
        "kl_baseline": pytest.approx([0.3] * 4),
        "desirable": [1, 0, 0, 1],
        "undesirable": [0, 1, 1, 0],
    }


def test_length_bias_is_what_goes_beyond_the_labels():
    # Lengths 3 against 5: the chosen answer is shorter. Preferred: the longer, the shorter, neither.
    difference = mx.array([-2.0, -2.0, -2.0, 2.0])
    margin = mx.array([-1.0, 1.0, 0.0, 1.0])
    assert length_bias(margin, difference).tolist() == [1.0, 0.0, 0.5, 0.0]
