"""Micro-batches of a whole run by index: which rows, in which order, is a pure function of the data, settings and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal

from mlxforge.core.settings import TrainSettings
from mlxforge.data.batch import BatchPlan, Rows, collate, padding, plan_epoch
from mlxforge.data.mix import Mixture
from mlxforge.training.batches import Batch, to_batch

Mode = Literal["packed", "bucketed"]
Make = Callable[[Any, BatchPlan], Any]  # rows and the plan of a batch -> the batch
LITTLE_PADDING = 0.15


def collated(rows: Rows, plan: BatchPlan) -> Batch:
    """A batch of rows of tokens."""
    return to_batch(collate(rows, plan))


def choose_mode(rows: Rows, settings: TrainSettings, packable: bool) -> Mode:
    """``auto``: buckets, whose attention is cheaper, unless so few rows are alike that their padding costs more."""
    if settings.batching == "packed" and packable:
        return "packed"
    if settings.batching == "bucketed" or not packable:
        return "bucketed"

    def padded(mode: Mode) -> float:
        plans = plan_epoch(
            rows.lengths, batch_tokens=settings.batch_tokens, max_length=settings.max_length, mode=mode, seed=0, epoch=0
        )
        return padding(plans, rows.lengths)

    # Few rows leave the lines of a pack half empty: packing has to save what it costs.
    bucketed = padded("bucketed")
    return "packed" if bucketed > LITTLE_PADDING and bucketed - padded("packed") > LITTLE_PADDING else "bucketed"


class RowStream:
    """The stream of a run over a mixture of rows; see :class:`mlxforge.training.loop.Stream`.

    A partial epoch takes the first batches of its plan. Memory holds the plans of two epochs.
    """

    def __init__(self, mixture: Mixture, settings: TrainSettings, mode: Mode, make: Make = collated) -> None:
        self.mixture, self.settings, self.mode, self.make = mixture, settings, mode, make
        self.plan = lru_cache(maxsize=2)(self._plan)
        self._ends: list[int] = []  # micro-batches up to the end of each epoch that was looked at
        self._length = self._count()

    def __len__(self) -> int:
        return self._length

    def batch(self, index: int) -> Any:
        """The micro-batch number ``index`` of the run."""
        epoch, first = self._epoch_of(index)
        return self.make(self.mixture.rows, self.plan(epoch)[index - first])

    def epoch(self, index: int) -> float:
        """Passes over the data that lie before micro-batch ``index``."""
        if index == 0:
            return 0.0
        epoch, first = self._epoch_of(index - 1)
        return epoch + (index - first) / len(self.plan(epoch))

    def padding(self) -> float:
        """The share of the first epoch's slots that is padding."""
        return padding(self.plan(0), self.mixture.rows.lengths)

    def _plan(self, epoch: int) -> list[BatchPlan]:
        settings = self.settings
        return plan_epoch(
            self.mixture.rows.lengths,
            batch_tokens=settings.batch_tokens,
            max_length=settings.max_length,
            mode=self.mode,
            seed=settings.seed,
            epoch=epoch,
            rows=self.mixture.epoch(settings.seed, epoch),
        )

    def _end(self, epoch: int) -> int:
        while len(self._ends) <= epoch:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + len(self.plan(len(self._ends))))
        return self._ends[epoch]

    def _epoch_of(self, index: int) -> tuple[int, int]:
        """(epoch, index of its first micro-batch) of a micro-batch."""
        epoch = 0
        while self._end(epoch) <= index:
            epoch += 1
        return epoch, self._ends[epoch - 1] if epoch else 0

    def _count(self) -> int:
        if self.settings.steps is not None:
            return self.settings.steps * self.settings.accumulate
        whole = int(self.settings.epochs)
        done = self._end(whole - 1) if whole else 0
        part = self.settings.epochs - whole
        return done + (max(1, round(part * len(self.plan(whole)))) if part > 1e-9 else 0)


class FixedBatches:
    """A set of rows in the same batches every time it is read: for evaluation."""

    def __init__(self, rows: Rows, settings: TrainSettings, mode: Mode, make: Make = collated) -> None:
        self.rows, self.make = rows, make
        self.plans = plan_epoch(
            rows.lengths, batch_tokens=settings.batch_tokens, max_length=settings.max_length, mode=mode, seed=0, epoch=0
        )

    def __iter__(self) -> Iterator[Any]:
        for plan in self.plans:
            yield self.make(self.rows, plan)
