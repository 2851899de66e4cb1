"""A pair has the same loss and gradients alone, padded, in buckets, packed, and with its prompt computed once."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxforge.core.events import Progress
from mlxforge.core.settings import CpoConfig, DpoConfig, KtoConfig, LoraSettings, OrpoConfig, SimpoConfig
from mlxforge.data.batch import BatchPlan
from mlxforge.models.load import load
from mlxforge.models.lora import adapter_config, make_trainable
from mlxforge.models.scoring import Scorer
from mlxforge.models.tiny import make_tiny
from mlxforge.training.losses import mean_metrics
from mlxforge.training.objectives import OBJECTIVES
from mlxforge.training.pairs import Mismatched, PairSet, collate_pairs, sequence_log_probs, take_reference

SETTINGS = {"dpo": DpoConfig(beta=0.3, sft_weight=0.2), "orpo": OrpoConfig(), "simpo": SimpoConfig(), "cpo": CpoConfig(),
            "kto": KtoConfig()}  # fmt: skip
LAYOUTS = ("single", "packed", "shared")


class Pair(NamedTuple):
    prompt: Any
    chosen: Any
    chosen_mask: Any
    rejected: Any
    rejected_mask: Any
    desirable: bool = True


class Pairs(list):
    """N pairs as a set of rows."""

    lengths = property(lambda self: np.array([len(p.prompt) + len(p.chosen) + len(p.rejected) for p in self]))
    prompts = property(lambda self: np.array([len(p.prompt) for p in self]))
    trained = property(lambda self: np.array([p.chosen_mask.sum() + p.rejected_mask.sum() for p in self]))


def made(count=5, seed=0):
    rng = np.random.default_rng(seed)

    def answer():
        size = int(rng.integers(1, 9))
        mask = rng.random(size) < 0.7
        mask[-1] = True
        return rng.integers(5, 400, size), mask

    return Pairs(Pair(rng.integers(5, 400, int(rng.integers(2, 20))), *answer(), *answer(), bool(i % 2)) for i in range(count))


@pytest.fixture(scope="module", params=["llama3", "qwen3", "gemma3", "olmo3", "deepseek_v3", "gpt_oss"])
def scorer(request, tmp_path_factory):
    """Families whose attention differs: plain, normed, sliding windows, latent, sinks."""
    model = load(str(make_tiny(request.param, tmp_path_factory.mktemp("model") / "m"))).model
    found = Scorer(model)
    make_trainable(model, adapter_config(model, LoraSettings(rank=4, alpha=8.0), "x"))
    for name, array in tree_flatten(model.trainable_parameters()):
        if name.endswith("lora_b"):
            model.load_weights([(name, 0.1 * mx.random.normal(array.shape, key=mx.random.key(len(name))))], strict=False)
    return found


def plan(*rows):
    return BatchPlan(tuple((row,) for row in rows), 64)


def computed(scorer, objective, sets, chosen, layout):
    """Loss, metrics and gradients of a batch."""
    loss = OBJECTIVES[objective].loss(SETTINGS[objective])
    batch = collate_pairs(sets, plan(*chosen), layout, 64)
    scorer.model.train()
    (total, _, metrics), gradients = nn.value_and_grad(scorer.model, lambda b: tuple(loss(scorer, b)))(batch)
    mx.eval(total, metrics, gradients)
    sums = {name: value.tolist() if value.ndim == 0 else value[0].item() for name, value in metrics.items()}
    return total.item(), sums, dict(tree_flatten(gradients))


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_layouts_agree_in_loss_and_gradients(scorer, objective):
    sets = PairSet(made(), shared=False)
    sets.reference[:] = -10 - np.arange(10).reshape(5, 2)
    assert scorer.shares
    wanted = computed(scorer, objective, sets, range(5), "single")
    for layout in LAYOUTS[1:]:
        found = computed(scorer, objective, sets, range(5), layout)
        assert found[0] == pytest.approx(wanted[0], rel=1e-5)
        assert found[1] == pytest.approx(wanted[1], rel=1e-4, abs=1e-5)
        scale = max(mx.abs(array).max().item() for array in wanted[2].values())
        assert scale > 1e-4
        for name, array in wanted[2].items():
            assert mx.allclose(found[2][name], array, rtol=1e-3, atol=1e-5 * max(scale, 1)).item(), (layout, name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    model = load(str(make_tiny("qwen2", tmp_path_factory.mktemp("plain") / "m"))).model
    found = Scorer(model)
    make_trainable(model, adapter_config(model, LoraSettings(rank=4, alpha=8.0), "x"))
    return found


@pytest.mark.parametrize("objective", ["dpo", "orpo", "simpo", "cpo"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pair_has_its_loss_in_any_company(plain, objective, layout):
    sets = PairSet(made(), shared=False)
    together = computed(plain, objective, sets, range(5), layout)
    alone = [computed(plain, objective, sets, [index], layout) for index in range(5)]
    assert together[0] == pytest.approx(sum(one[0] for one in alone), rel=1e-5)
    for name in together[1]:
        assert together[1][name] == pytest.approx(sum(one[1][name] for one in alone), rel=1e-4, abs=1e-4)
    for name, array in together[2].items():
        assert mx.allclose(array, sum(one[2][name] for one in alone), rtol=1e-3, atol=1e-5).item()


def test_sums_are_those_of_a_plain_forward_pass(plain):
    """One sequence at a time, by the model's own logits."""
    pairs = made()
    plain.model.eval()
    batch = collate_pairs(PairSet(pairs, shared=False), plan(*range(5)), "shared")
    found = sequence_log_probs(plain, batch).tolist()
    for index, pair in enumerate(pairs):
        for side, (answer, mask) in enumerate(((pair.chosen, pair.chosen_mask), (pair.rejected, pair.rejected_mask))):
            ids = np.concatenate([pair.prompt, answer])
            logits = plain.model(mx.array(ids[:-1])[None])[0]
            logps = mx.take_along_axis(logits - mx.logsumexp(logits, -1, keepdims=True), mx.array(ids[1:])[:, None], -1)[:, 0]
            wanted = np.array(logps)[len(pair.prompt) - 1 :][mask].sum()
            assert found[side * 5 + index] == pytest.approx(wanted, rel=1e-4)


def test_the_first_loss_is_ln_2_and_a_wrong_reference_is_seen(plain):
    sets, heard = PairSet(made(), shared=True), []
    rows = [plan(0, 1, 2), plan(3, 4)]
    take_reference(plain, ((one.rows, collate_pairs(sets, one, "shared")) for one in rows), sets, heard.append)
    loss = OBJECTIVES["dpo"].loss(DpoConfig())
    right = loss(plain, collate_pairs(sets, plan(*range(5)), "single"))
    assert right.total.item() / right.items == pytest.approx(math.log(2), rel=1e-4)
    assert right.metrics["accuracy"].item() / 5 == pytest.approx(0.5, abs=0.5)
    assert [event.done for event in heard if isinstance(event, Progress)] == [0, 3, 5]
    sets.reference[:, 0] -= 5
    wrong = loss(plain, collate_pairs(sets, plan(*range(5)), "single"))
    assert wrong.total.item() / wrong.items < math.log(2) - 0.1


def test_metrics_of_one_kind_of_answers_have_their_own_count(plain):
    """KTO's reward of wanted answers is a mean over these, in however many batches."""
    sets = PairSet(made(), shared=False)
    loss = OBJECTIVES["kto"].loss(KtoConfig())
    parts = [loss(plain, collate_pairs(sets, plan(*rows), "single")).metrics for rows in ((0, 1), (2, 3, 4))]
    sums = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    whole = mean_metrics(sums, 5)
    batch = collate_pairs(sets, plan(*range(5)), "single")
    logps = np.array(sequence_log_probs(plain, batch))[:5]
    wanted = np.array([sets.rows[i].desirable for i in range(5)])
    assert whole["logp_chosen"] == pytest.approx(logps[wanted].mean(), rel=1e-4)
    assert whole["logp_rejected"] == pytest.approx(logps[~wanted].mean(), rel=1e-4)


def test_a_model_that_cannot_share_says_so(tmp_path):
    """Recurrent layers carry no keys and values: the probe finds it, whatever the table says."""
    assert not Scorer(load(str(make_tiny("lfm2", tmp_path / "m"))).model).shares


class Rated(NamedTuple):
    prompt: Any
    answer: Any
    mask: Any
    desirable: bool


class Answers(list):
    lengths = property(lambda self: np.array([len(a.prompt) + len(a.answer) for a in self]))
    prompts = property(lambda self: np.array([len(a.prompt) for a in self]))
    trained = property(lambda self: np.array([a.mask.sum() for a in self]))
    keys = property(lambda self: np.array([hash(tuple(a.prompt.tolist())) for a in self]))


def test_an_answer_stands_beside_one_of_another_prompt():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 9, 4) for _ in range(3)]
    rows = Answers(Rated(prompts[i // 2], rng.integers(0, 9, 3 + i), np.ones(3 + i, bool), bool(i % 2)) for i in range(6))
    beside = Mismatched(rows, max_length=9)
    for index in range(6):
        row = beside[index]
        other = rows[int(beside.other[index])]
        assert row.prompt.tolist() != other.prompt.tolist()
        assert row.rejected.tolist() == other.answer[: len(row.rejected)].tolist()
        assert len(row.prompt) + len(row.rejected) - 1 <= 9
        assert len(row.prompt) + len(row.chosen) + len(row.rejected) == beside.lengths[index]
        assert row.desirable == rows[index].desirable
