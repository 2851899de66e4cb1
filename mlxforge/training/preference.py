"""Losses that learn from preferences, as pure functions of log-probabilities: one loss a pair, or one an answer.

Nothing here depends on the rest of the batch, except the baseline of KTO. docs/preferences.md has the formulas, their sources
and the choices where a source is silent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from mlxforge.core.settings import CpoConfig, DpoConfig, KtoConfig, OrpoConfig, Settings, SimpoConfig


class Pairs(NamedTuple):
    """A chosen and a rejected answer to the same prompt. Arrays are (P,) float32, log-probabilities are sums in nats."""

    chosen: mx.array  # log p of the trained tokens of the chosen answer, under the policy
    rejected: mx.array
    chosen_tokens: mx.array  # how many trained tokens each answer has, at least 1
    rejected_tokens: mx.array
    reference_chosen: mx.array  # the same sums under the reference; zeros where the objective has none
    reference_rejected: mx.array


class Answers(NamedTuple):
    """Answers judged alone. Arrays are (A,), log-probabilities are sums in nats.

    ``mismatched`` belongs to the same prompts with the answers of other rows; only its mean is used, so that the two arrays
    may come from more rows, or fewer, than are judged.
    """

    logps: mx.array
    tokens: mx.array  # how many trained tokens each answer has, at least 1
    desirable: mx.array  # bool
    reference: mx.array
    mismatched: mx.array
    reference_mismatched: mx.array


PairLoss = Callable[[Pairs], mx.array]  # -> (P,)
AnswerLoss = Callable[[Answers], mx.array]  # -> (A,)

# log p of an answer is kept this far below 0 where p / (1 - p) is taken: 1 - p is rounding noise closer to 1.
LOG_P_BELOW_ONE = -1e-6

# Margins that rounding makes of log-probabilities that are equal.
TIE = 1e-5

# Where EXO is given no smoothing: its target has to have a finite logarithm.
EXO_SMOOTHING = 1e-3


def softplus(x: mx.array) -> mx.array:
    """log(1 + e^x), for any x. ``softplus(-x)`` is -log sigmoid(x)."""
    return mx.logaddexp(x, mx.zeros_like(x))


def chosen_ratio(pairs: Pairs) -> mx.array:
    """log(policy / reference) of the chosen answers (P,)."""
    return pairs.chosen - pairs.reference_chosen


def rejected_ratio(pairs: Pairs) -> mx.array:
    """log(policy / reference) of the rejected answers (P,)."""
    return pairs.rejected - pairs.reference_rejected


def sft(pairs: Pairs) -> mx.array:
    """Cross-entropy of the chosen answer, a token (P,)."""
    return -pairs.chosen / pairs.chosen_tokens


def log_odds(logps: mx.array) -> mx.array:
    """log(p / (1 - p)) from log p <= 0, finite with a finite gradient as p becomes 1."""
    # Only 1 - p is kept from 0. The gradient of log p itself stays, so that a rejected answer of p = 1 is still pushed down.
    return logps - mx.log(-mx.expm1(mx.minimum(logps, LOG_P_BELOW_ONE)))


# The variants of DPO. Each is (pairs, settings) -> (P,).


def dpo_margin(pairs: Pairs, settings: DpoConfig) -> mx.array:
    """Reward of the chosen answer less that of the rejected one (P,); arXiv 2305.18290, equation 7."""
    return settings.beta * (chosen_ratio(pairs) - rejected_ratio(pairs))


def sigmoid_loss(pairs: Pairs, settings: DpoConfig) -> mx.array:
    """arXiv 2305.18290, equation 7; with label smoothing, labels are taken to be wrong that often."""
    margin, wrong = dpo_margin(pairs, settings), settings.label_smoothing
    return (1 - wrong) * softplus(-margin) + wrong * softplus(margin)


def robust_loss(pairs: Pairs, settings: DpoConfig) -> mx.array:
    """arXiv 2403.00409: unbiased where a share of the labels is wrong. Without bound below once smoothing is above 0."""
    margin, wrong = dpo_margin(pairs, settings), settings.label_smoothing
    return ((1 - wrong) * softplus(-margin) - wrong * softplus(margin)) / (1 - 2 * wrong)


def hinge_loss(pairs: Pairs, settings: DpoConfig) -> mx.array:
    """arXiv 2305.10425 (SLiC) on the ratios to the reference, as in arXiv 2309.06657."""
    return mx.maximum(1 - dpo_margin(pairs, settings), 0)


def ipo_loss(pairs: Pairs, settings: DpoConfig) -> mx.array:
    """arXiv 2310.12036, equation 17, with log-probabilities a token; ``beta`` is the paper's tau."""
    difference = chosen_ratio(pairs) / pairs.chosen_tokens - rejected_ratio(pairs) / pairs.rejected_tokens
    return mx.square(difference - 1 / (2 * settings.beta))


def apo_zero_loss(pairs: Pairs, settings: DpoConfig) -> mx.array:
    """arXiv 2408.06266: the chosen answer's reward up, the rejected one's down, each from 0. Between 0 and 2."""
    return mx.sigmoid(-settings.beta * chosen_ratio(pairs)) + mx.sigmoid(settings.beta * rejected_ratio(pairs))


def dpop_loss(pairs: Pairs, settings: DpoConfig) -> mx.array:
    """arXiv 2402.13228 (DPO-positive): a penalty inside the sigmoid where the chosen answer is less likely than before."""
    penalty = settings.beta * settings.dpop_weight * mx.maximum(-chosen_ratio(pairs), 0)
    return softplus(penalty - dpo_margin(pairs, settings))


def exo_loss(pairs: Pairs, settings: DpoConfig) -> mx.array:
    """arXiv 2402.00856, equation 16: KL(policy's preference || smoothed label), for two answers."""
    margin, wrong = dpo_margin(pairs, settings), mx.array(settings.label_smoothing or EXO_SMOOTHING)
    right_term = mx.sigmoid(margin) * (-softplus(-margin) - mx.log1p(-wrong))
    return right_term + mx.sigmoid(-margin) * (-softplus(margin) - mx.log(wrong))


def nca_loss(pairs: Pairs, settings: DpoConfig) -> mx.array:
    """arXiv 2402.05369, for two answers: likelihoods themselves and not only their difference."""
    chosen, rejected = settings.beta * chosen_ratio(pairs), settings.beta * rejected_ratio(pairs)
    return softplus(-chosen) + (softplus(chosen) + softplus(rejected)) / 2


DPO_VARIANTS: dict[str, Callable[[Pairs, DpoConfig], mx.array]] = {
    "sigmoid": sigmoid_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "robust": robust_loss,
    "apo_zero": apo_zero_loss,
    "dpop": dpop_loss,
    "exo": exo_loss,
    "nca": nca_loss,
}


# The objectives over pairs. Each is settings -> (pairs -> (P,)).


def dpo(settings: DpoConfig) -> PairLoss:
    """The variant that ``settings.loss`` names, with ``sft_weight`` times the cross-entropy of the chosen answer."""
    variant = DPO_VARIANTS[settings.loss]
    return lambda pairs: variant(pairs, settings) + settings.sft_weight * sft(pairs)


def orpo(settings: OrpoConfig) -> PairLoss:
    """arXiv 2403.07691, equations 6 and 7: cross-entropy of the chosen answer and ``beta`` times the odds ratio."""

    def loss(pairs: Pairs) -> mx.array:
        ratio = log_odds(pairs.chosen / pairs.chosen_tokens) - log_odds(pairs.rejected / pairs.rejected_tokens)
        return sft(pairs) + settings.beta * softplus(-ratio)

    return loss


def simpo(settings: SimpoConfig) -> PairLoss:
    """arXiv 2405.14734, equation 6: log-probabilities a token, a margin of ``gamma``, no reference."""

    def loss(pairs: Pairs) -> mx.array:
        difference = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
        return softplus(settings.gamma - settings.beta * difference) + settings.sft_weight * sft(pairs)

    return loss


def cpo(settings: CpoConfig) -> PairLoss:
    """arXiv 2401.08417: DPO with a uniform reference, and cross-entropy of the chosen answer."""

    def loss(pairs: Pairs) -> mx.array:
        margin = settings.beta * (pairs.chosen - pairs.rejected)
        return softplus(-margin) + settings.sft_weight * sft(pairs)

    return loss


PAIR_LOSSES: dict[str, Callable[[Any], PairLoss]] = {"dpo": dpo, "orpo": orpo, "simpo": simpo, "cpo": cpo}


# Metrics. Each is one value a pair or an answer, so that a mean over any set of them is a mean of rows.


def rewards(pairs: Pairs, settings: Settings) -> tuple[mx.array, mx.array]:
    """What the objective compares: rewards of the chosen and of the rejected answers, both (P,)."""
    chosen, rejected = chosen_ratio(pairs), rejected_ratio(pairs)
    if per_token(settings):
        chosen, rejected = chosen / pairs.chosen_tokens, rejected / pairs.rejected_tokens
    beta: float = settings.beta  # type: ignore[attr-defined]
    return beta * chosen, beta * rejected


def per_token(settings: Settings) -> bool:
    """Whether the objective compares log-probabilities a token, not those of whole answers."""
    return isinstance(settings, (OrpoConfig, SimpoConfig)) or (isinstance(settings, DpoConfig) and settings.loss == "ipo")


def share_right(margin: mx.array) -> mx.array:
    """1 where the margin is positive, 0 where it is negative, 0.5 where it is 0 but for rounding."""
    return (mx.sign(mx.where(mx.abs(margin) < TIE, 0, margin)) + 1) / 2


def length_bias(margin: mx.array, difference: mx.array) -> mx.array:
    """Whether the longer answer is preferred less whether it is the chosen one (P,): above 0 in the mean, longer answers are
    preferred more often than the labels do."""
    return share_right(margin * difference) - share_right(difference)


def pair_metrics(pairs: Pairs, settings: Settings) -> dict[str, mx.array]:
    """Metrics of each pair, all (P,): rewards, margin, accuracy, log-probabilities, KL and the difference in length.

    ``kl`` is there only where the objective has a reference.
    """
    chosen, rejected = rewards(pairs, settings)
    metrics = {
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "margin": chosen - rejected,
        "accuracy": share_right(chosen - rejected),
        "logp_chosen": pairs.chosen,
        "logp_rejected": pairs.rejected,
        "length_difference": pairs.chosen_tokens - pairs.rejected_tokens,
        "length_bias": length_bias(chosen - rejected, pairs.chosen_tokens - pairs.rejected_tokens),
    }
    if isinstance(settings, DpoConfig):
        metrics["kl"] = (chosen_ratio(pairs) + rejected_ratio(pairs)) / 2
    return metrics


def kl_baseline(answers: Answers) -> mx.array:
    """KTO's z0: how much likelier answers of other rows have become, at least 0, a scalar without gradient."""
    return mx.stop_gradient(mx.maximum((answers.mismatched - answers.reference_mismatched).mean(), 0))


def kto_loss(settings: KtoConfig) -> AnswerLoss:
    """arXiv 2402.01306: weight x (1 - value), the value being the sigmoid of the reward's distance from the baseline."""

    def loss(answers: Answers) -> mx.array:
        gain = settings.beta * (answers.logps - answers.reference - kl_baseline(answers))
        return mx.where(
            answers.desirable,
            settings.desirable_weight * mx.sigmoid(-gain),
            settings.undesirable_weight * mx.sigmoid(gain),
        )

    return loss


def kto_metrics(answers: Answers, settings: KtoConfig) -> dict[str, mx.array]:
    """Metrics of each answer, all (A,).

    ``*_chosen`` is 0 for an undesirable answer and ``*_rejected`` for a desirable one: divide their sums by those of
    ``desirable`` and ``undesirable``. ``margin`` is the reward, negated where the answer is undesirable.
    """
    desirable = answers.desirable.astype(mx.float32)
    ratio = answers.logps - answers.reference
    reward = settings.beta * ratio
    margin = mx.where(answers.desirable, reward, -reward)
    return {
        "reward_chosen": reward * desirable,
        "reward_rejected": reward * (1 - desirable),
        "margin": margin,
        "accuracy": share_right(margin),
        "logp_chosen": answers.logps * desirable,
        "logp_rejected": answers.logps * (1 - desirable),
        "kl": ratio,
        "kl_baseline": mx.broadcast_to(kl_baseline(answers), ratio.shape),
        "desirable": desirable,
        "undesirable": 1 - desirable,
    }


# Settings of DPO that only some variants read.
ONLY_FOR = {"label_smoothing": ("sigmoid", "robust", "exo"), "dpop_weight": ("dpop",)}


def unused(settings: Settings) -> list[str]:
    """Settings that were changed from their defaults and do nothing with the chosen loss."""
    if not isinstance(settings, DpoConfig):
        return []
    defaults = DpoConfig()
    return [
        name
        for name, losses in ONLY_FOR.items()
        if settings.loss not in losses and getattr(settings, name) != getattr(defaults, name)
    ]
