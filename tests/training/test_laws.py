"""The laws of batching and of the loop, on the shipped tiny model."""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxforge.core.config import from_dict
from mlxforge.core.events import Control, ignore
from mlxforge.core.settings import LoraSettings, SftConfig, TrainSettings
from mlxforge.data.batch import Row, collate, plan_epoch
from mlxforge.data.mix import Mixture
from mlxforge.models.load import load
from mlxforge.models.lora import adapter_config, make_trainable
from mlxforge.models.scoring import Scorer
from mlxforge.training.batches import to_batch
from mlxforge.training.evaluate import score
from mlxforge.training.loop import Job, Loop
from mlxforge.training.losses import next_token, token_log_probs
from mlxforge.training.streams import FixedBatches, RowStream, choose_mode


class Rows(list):
    """Random rows of given lengths; every third target of a row is masked."""

    def __init__(self, lengths, seed=0):
        rng = np.random.default_rng(seed)
        super().__init__(Row(rng.integers(0, 2000, n + 1), np.arange(n) % 3 != 1) for n in lengths)

    @property
    def lengths(self):
        return np.array([len(row.tokens) - 1 for row in self])

    @property
    def trained(self):
        return np.array([int(row.mask.sum()) for row in self])


LENGTHS = [5, 40, 17, 64, 3, 29, 31, 50, 8, 11, 23, 2]


@pytest.fixture(scope="module")
def scorer():
    loaded = load("tiny")
    made = Scorer(loaded.model)
    make_trainable(loaded.model, adapter_config(loaded.model, LoraSettings(rank=4, alpha=8.0), "tiny"))
    for _, module in loaded.model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    return made


def row_losses(scorer, rows, mode, batch_tokens=128):
    """Loss summed by row, computed in batches of a mode."""
    losses = np.zeros(len(rows))
    for plan in plan_epoch(rows.lengths, batch_tokens=batch_tokens, max_length=64, mode=mode, seed=1, epoch=0):
        arrays = collate(rows, plan)
        batch = to_batch(arrays)
        values = -np.array(token_log_probs(scorer, batch))
        np.add.at(losses, np.array(plan.rows)[arrays["rows"].reshape(-1)[np.flatnonzero(arrays["mask"])]], values)
    return losses


@pytest.mark.parametrize("mode", ["packed", "bucketed"])
def test_a_row_has_the_same_loss_in_a_batch_and_alone(scorer, mode):
    rows = Rows(LENGTHS)
    alone = row_losses(scorer, rows, "bucketed", batch_tokens=16)
    together = row_losses(scorer, rows, mode)
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-4)


def test_packed_rows_would_differ_without_their_mask(scorer, monkeypatch):
    """The comparison bites."""
    rows = Rows(LENGTHS)
    alone = row_losses(scorer, rows, "packed")
    monkeypatch.setattr("mlxforge.models.scoring.packed_cache", lambda layers, _: [None] * layers)
    assert row_losses(scorer, rows, "packed") != pytest.approx(alone, rel=1e-3)


def loop(scorer, rows, **settings):
    given = TrainSettings(**({"max_length": 64, "batch_tokens": 128, "epochs": 1, "sample_tokens": 0} | settings))
    stream = RowStream(Mixture(rows, np.ones(len(rows))), given, "bucketed")
    return Loop(Job(scorer, next_token, stream, given), ignore, Control())


def test_accumulation_equals_one_large_batch(scorer):
    rows = Rows(LENGTHS)
    small = loop(scorer, rows, batch_tokens=64)
    large = loop(scorer, rows, batch_tokens=4096)
    assert len(large.job.stream) == 1
    assert len(small.job.stream) > 3
    parts = small.compute([small.job.stream.batch(i) for i in range(len(small.job.stream))])
    whole = large.compute([large.job.stream.batch(0)])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    for (name, a), (_, b) in zip(tree_flatten(parts.gradients), tree_flatten(whole.gradients), strict=True):
        assert mx.allclose(a, b, rtol=1e-3, atol=1e-5), name


def test_the_tail_of_an_accumulation_is_applied(scorer):
    made = loop(scorer, Rows(LENGTHS), batch_tokens=64, accumulate=3)
    assert made.job.steps == -(-len(made.job.stream) // 3)
    before = mx.array(scorer.model.layers[0].mlp.up_proj.lora_a)
    made.state.step = made.job.steps - 1
    made.run()
    assert made.state.step == made.job.steps
    assert not mx.array_equal(before, scorer.model.layers[0].mlp.up_proj.lora_a)


@pytest.mark.parametrize("mode", ["packed", "bucketed"])
def test_every_row_is_read_once_an_epoch_in_another_order(mode):
    rows = Rows(LENGTHS * 3)
    settings = TrainSettings(max_length=64, batch_tokens=128, epochs=2)
    stream = RowStream(Mixture(rows, np.ones(len(rows))), settings, mode)
    orders = [[row for plan in stream.plan(epoch) for row in plan.rows] for epoch in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(len(rows)))] * 2
    assert orders[0] != orders[1]
    assert sum(stream.batch(i).trained for i in range(len(stream))) == 2 * rows.trained.sum()


def test_no_padding_is_trained(scorer):
    """Other tokens in the padded slots change nothing."""
    rows = Rows([5, 9, 30])
    (plan,) = plan_epoch(rows.lengths, batch_tokens=4096, max_length=64, mode="bucketed", seed=0, epoch=0)
    arrays = collate(rows, plan)
    plain = next_token(scorer, to_batch(arrays))
    padded = arrays["segments"] == 0
    assert padded.any()
    assert not arrays["mask"][padded].any()
    spoiled = arrays | {"tokens": np.where(padded, 7, arrays["tokens"]), "targets": np.where(padded, 9, arrays["targets"])}
    assert next_token(scorer, to_batch(spoiled)).total.item() == plain.total.item()
    assert plain.items == rows.trained.sum()


def test_evaluation_reads_the_same_batches_and_draws_nothing(scorer):
    rows = Rows(LENGTHS)
    fixed = FixedBatches(rows, TrainSettings(max_length=64, batch_tokens=128), "bucketed")
    state = mx.random.state[0].tolist()
    first, second = (score(scorer, next_token, fixed, 100) for _ in range(2))
    assert (first.loss, first.tokens) == (second.loss, second.tokens)
    assert first.tokens == rows.trained.sum()
    assert mx.random.state[0].tolist() == state


def test_bits_per_byte_is_what_it_says(scorer):
    """Summed nats / ln 2 / bytes, from the log-probabilities themselves."""
    rows = Rows([10, 20])
    fixed = FixedBatches(rows, TrainSettings(max_length=64), "bucketed")
    found = score(scorer, next_token, fixed, 77)
    nats = sum(float(-token_log_probs(scorer, batch).sum()) for batch in fixed)
    assert found.bpb == pytest.approx(nats / np.log(2) / 77, rel=1e-6)
    assert found.perplexity == pytest.approx(np.exp(nats / rows.trained.sum()), rel=1e-6)


def test_a_partial_epoch_and_a_number_of_steps():
    rows = Rows(LENGTHS * 2)
    ones = np.ones(len(rows))
    whole = RowStream(Mixture(rows, ones), TrainSettings(max_length=64, batch_tokens=64, epochs=1), "bucketed")
    half = RowStream(Mixture(rows, ones), TrainSettings(max_length=64, batch_tokens=64, epochs=0.5), "bucketed")
    assert len(half) == round(0.5 * len(whole))
    long = RowStream(Mixture(rows, ones), TrainSettings(max_length=64, batch_tokens=64, steps=100, accumulate=2), "bucketed")
    assert len(long) == 200
    assert long.epoch(len(whole)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("lengths", "mode"),
    [
        ([70] * 39, "bucketed"),  # alike: no padding
        ([1000] * 2 + [300] * 9, "packed"),  # unlike, and whole lines can be made of them
        ([40, 80, 120] * 12, "bucketed"),  # unlike, but so few that a packed line would be half empty
    ],
)
def test_rows_are_packed_only_where_that_saves_padding(lengths, mode) -> None:
    rows = SimpleNamespace(lengths=np.array(lengths))
    settings = from_dict(SftConfig, {"batch_tokens": 8192, "max_length": 2048})
    assert choose_mode(rows, settings, packable=True) == mode
    assert choose_mode(rows, settings, packable=False) == "bucketed"
