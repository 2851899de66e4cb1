"""Batches: every row once an epoch, no padding trained, little of it, and an order that (seed, epoch) alone decides."""

from __future__ import annotations

import itertools
import time
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxforge.data.batch import BatchPlan, Row, collate, pack, padding, plan_epoch, round_width

Mode = Literal["packed", "bucketed"]
MODES: list[Mode] = ["packed", "bucketed"]
LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)


class Some:
    """Rows of distinct tokens, every third target trained."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)
        self.starts = np.cumsum([1, *(length + 1 for length in lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:
        tokens = np.arange(self.starts[index], self.starts[index + 1])
        return Row(tokens, tokens[1:] % 3 == 0)

    @property
    def trained(self) -> np.ndarray:
        return np.array([np.count_nonzero(np.asarray(self[i].mask)) for i in range(len(self))])


def plan(
    lengths: list[int], mode: Mode, *, batch_tokens: int = 256, max_length: int = 100, seed: int = 0, epoch: int = 0
) -> list[BatchPlan]:
    settings = {"batch_tokens": batch_tokens, "max_length": max_length, "seed": seed, "epoch": epoch}
    return plan_epoch(np.array(lengths), mode=mode, **settings)


@given(lengths=LENGTHS, spare=st.integers(0, 50))
def test_packing_never_exceeds_the_capacity_and_loses_nothing(lengths: list[int], spare: int) -> None:
    capacity = max(lengths) + spare
    bins = pack(lengths, capacity)
    assert sorted(itertools.chain(*bins)) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in line) <= capacity for line in bins)
    # Best fit opens a bin only where no other has room, so two bins never fit into one.
    fills = sorted(sum(lengths[i] for i in line) for line in bins)
    assert len(fills) < 2 or fills[0] + fills[1] > capacity


def test_packing_takes_the_tightest_bin() -> None:
    assert pack([6, 5, 4, 3], 9) == [[0, 3], [1, 2]]
    with pytest.raises(ValueError, match="do not fit"):
        pack([10], 9)
    assert pack([], 9) == []


@given(lengths=LENGTHS, batch_tokens=st.integers(16, 400), seed=st.integers(0, 3), epoch=st.integers(0, 3))
@pytest.mark.parametrize("mode", MODES)
def test_every_row_once_an_epoch_within_the_budget(
    mode: Mode, lengths: list[int], batch_tokens: int, seed: int, epoch: int
) -> None:
    found = plan(lengths, mode, batch_tokens=batch_tokens, seed=seed, epoch=epoch)
    assert sorted(row for batch in found for row in batch.rows) == list(range(len(lengths)))
    for batch in found:
        assert batch.slots <= batch_tokens or len(batch.lines) == 1
        assert max(sum(lengths[row] for row in line) for line in batch.lines) <= batch.width
        assert batch.single == all(len(line) == 1 for line in batch.lines)
    assert mode == "packed" or all(batch.single for batch in found)


@pytest.mark.parametrize("mode", MODES)
def test_the_order_is_a_pure_function_of_seed_and_epoch(mode: Mode) -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 500).tolist()
    assert plan(lengths, mode, seed=1, epoch=2) == plan(lengths, mode, seed=1, epoch=2)
    others = [plan(lengths, mode, seed=seed, epoch=epoch) for seed, epoch in [(1, 2), (1, 3), (2, 2)]]
    together = [{frozenset(batch.rows) for batch in found} for found in others]
    for one, two in itertools.combinations(together, 2):
        assert len(one & two) < 0.2 * len(one), "the batches themselves differ, not only their order"


@pytest.mark.parametrize("mode", MODES)
def test_rows_may_be_chosen_and_repeated(mode: Mode) -> None:
    rows = np.array([3, 3, 1])
    found = plan_epoch(np.array([5, 6, 7, 8]), batch_tokens=32, max_length=16, mode=mode, seed=0, epoch=0, rows=rows)
    assert sorted(row for batch in found for row in batch.rows) == [1, 3, 3]
    assert plan_epoch(np.array([5]), batch_tokens=9, max_length=9, mode=mode, seed=0, epoch=0, rows=rows[:0]) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("median", [60, 150, 400])
@pytest.mark.parametrize("count", [2000, 20_000])
def test_little_padding_on_lognormal_lengths(mode: Mode, median: int, count: int) -> None:
    drawn = np.random.default_rng(0).lognormal(np.log(median), 0.8, count)
    lengths = np.clip(drawn, 4, 1024).astype(int)
    found = plan(lengths.tolist(), mode, batch_tokens=4096, max_length=1024)
    assert padding(found, lengths) < 0.1
    assert len({(len(batch.lines), batch.width) for batch in found}) < 100, "few shapes, so that compiled kernels are reused"


@given(length=st.integers(1, 5000), limit=st.integers(1, 5000))
def test_widths_are_few_and_close(length: int, limit: int) -> None:
    width = round_width(length, limit)
    assert length <= width <= max(length + 7, length * 9 / 8)
    assert width <= limit or width == length
    assert len({round_width(i, 5000) for i in range(1, 5001)}) < 60


@given(lengths=LENGTHS)
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_holds_its_rows_and_nothing_else(mode: Mode, lengths: list[int]) -> None:
    rows = Some(lengths)
    for batch in plan(lengths, mode):
        arrays = collate(rows, batch)
        assert all(arrays[name].shape == (len(batch.lines), batch.width) for name in arrays if name != "single")
        assert bool(arrays["single"]) == batch.single
        real = arrays["segments"] > 0
        assert not arrays["mask"][~real].any(), "no padding is trained"
        assert not arrays["tokens"][~real].any()
        number = 0
        for b, line in enumerate(batch.lines):
            for segment, index in enumerate(line, 1):
                here = arrays["segments"][b] == segment
                tokens, mask = rows[index]
                assert arrays["tokens"][b][here].tolist() == tokens[:-1].tolist()
                assert arrays["targets"][b][here].tolist() == tokens[1:].tolist()
                assert arrays["mask"][b][here].tolist() == np.asarray(mask).tolist()
                assert set(arrays["rows"][b][here]) == {number}
                number += 1
            assert (np.diff(np.flatnonzero(real[b])) == 1).all(), "padding stands at the end"


def test_sums_by_row_come_from_the_row_numbers() -> None:
    rows = Some([5, 9, 3, 7, 20])
    (batch,) = plan([5, 9, 3, 7, 20], "packed", batch_tokens=256, max_length=64)
    arrays = collate(rows, batch)
    counts = np.bincount(arrays["rows"][arrays["mask"]], minlength=len(batch.rows))
    assert counts.tolist() == rows.trained[list(batch.rows)].tolist()


def test_a_row_without_a_mask_trains_every_target() -> None:
    class Whole(Some):
        def __getitem__(self, index: int) -> Row:
            return Row(super().__getitem__(index).tokens)

    arrays = collate(Whole([5, 3]), BatchPlan(((0,), (1,)), 8))
    assert arrays["mask"].sum() == 8


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_million_rows_are_planned_in_seconds(mode: Mode) -> None:
    drawn = np.random.default_rng(0).lognormal(np.log(150), 0.8, 1_000_000)
    begun = time.perf_counter()
    plan(np.clip(drawn, 4, 1024).astype(int).tolist(), mode, batch_tokens=8192, max_length=1024)
    assert time.perf_counter() - begun < 20
