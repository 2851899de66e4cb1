"""From the lengths of rows to batches: every row once an epoch, little padding, in an order that (seed, epoch) decides.

Two ways that give the same loss a row. *Bucketed*: a line holds one row, a batch rows of like length. *Packed*: a line holds
several rows, filled by best fit (arXiv 2404.10830); ``segments`` keeps them from seeing each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

NOISE = 0.05  # how far, as a share of its length, a row may move in the order by length: batches differ by epoch
MOST_PADDING = 0.1  # a batch that is at least half full ends before more of it than this is padding
LEAST_STEP = 8  # widths are multiples of this


class Row(NamedTuple):
    """N + 1 tokens: N inputs and, one further, N targets. ``mask`` (N,) tells which targets are trained; None: all."""

    tokens: npt.NDArray[Any]
    mask: npt.NDArray[Any] | None = None


class Rows(Protocol):
    """A set of rows. ``lengths`` (R,) counts inputs, ``trained`` (R,) the targets that carry loss."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Row: ...
    @property
    def lengths(self) -> npt.NDArray[np.int64]: ...
    @property
    def trained(self) -> npt.NDArray[np.int64]: ...


@dataclass(frozen=True)
class BatchPlan:
    """Which rows stand in which line of a batch, and how wide its lines are."""

    lines: tuple[tuple[int, ...], ...]
    width: int

    @property
    def rows(self) -> tuple[int, ...]:
        """All S rows of the batch, line by line."""
        return tuple(row for line in self.lines for row in line)

    @property
    def single(self) -> bool:
        """Whether each line holds one row: then plain causal attention is right, since padding is at the end."""
        return all(len(line) == 1 for line in self.lines)

    @property
    def slots(self) -> int:
        """Tokens with padding."""
        return len(self.lines) * self.width


def round_width(length: int, limit: int) -> int:
    """The next of a small set of widths (eight an octave), so that compiled kernels are reused; at most ``limit``."""
    step = max(LEAST_STEP, 1 << max((length - 1).bit_length() - 4, 0))
    return min(-(-length // step) * step, max(limit, length))


def pack(lengths: Sequence[int] | npt.NDArray[Any], capacity: int) -> list[list[int]]:
    """Best-fit-decreasing bins: indices whose lengths sum to at most ``capacity``. Equal lengths keep their order.

    Raises:
        ValueError: a length below 1 or above the capacity.
    """
    sizes = np.asarray(lengths)
    if len(sizes) and not 1 <= sizes.min() <= sizes.max() <= capacity:
        raise ValueError(f"lengths of {sizes.min()} to {sizes.max()} do not fit bins of {capacity}")
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_rooms = 0  # bit r is set while some bin has room for exactly r more
    order = np.argsort(-sizes, kind="stable")
    for row, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fitting = open_rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                open_rooms ^= 1 << room
            bins[chosen].append(row)
        else:
            room, chosen = capacity, len(bins)
            bins.append([row])
        by_room[room - size].append(chosen)
        open_rooms |= 1 << (room - size)
    return bins


def plan_epoch(
    lengths: npt.NDArray[Any],
    *,
    batch_tokens: int,
    max_length: int,
    mode: Literal["packed", "bucketed"],
    seed: int,
    epoch: int,
    rows: npt.NDArray[Any] | None = None,
) -> list[BatchPlan]:
    """The batches of one epoch, in training order.

    Args:
        lengths: (R,) inputs of each row.
        batch_tokens: lines times width at most, but never less than one line.
        max_length: width of a packed line, where rows fill it.
        rows: indices of the rows that this epoch reads, repeats allowed; by default all, once.
    """
    rng = np.random.default_rng([seed, epoch])
    chosen = rng.permutation(np.arange(len(lengths)) if rows is None else np.asarray(rows))
    if not len(chosen):
        return []
    planner = {"packed": _packed, "bucketed": _bucketed}[mode]
    batches = planner(chosen, np.asarray(lengths)[chosen], batch_tokens, max_length, rng)
    return [batches[i] for i in rng.permutation(len(batches))]


def _packed(
    rows: npt.NDArray[Any], sizes: npt.NDArray[Any], batch_tokens: int, max_length: int, rng: np.random.Generator
) -> list[BatchPlan]:
    capacity = max(int(sizes.max()), min(max_length, batch_tokens, int(sizes.sum())))
    bins = pack(sizes, capacity)
    fills = np.array([sizes[line].sum() for line in bins])
    # Only the last bins of best fit have room left: put them together, mix the rest.
    order = rng.permutation(len(bins))
    order = order[np.argsort([-round_width(int(fills[i]), capacity) for i in order], kind="stable")]
    lines = [tuple(rows[bins[i]].tolist()) for i in order]
    return _by_budget(lines, fills[order], batch_tokens, capacity)


def _bucketed(
    rows: npt.NDArray[Any], sizes: npt.NDArray[Any], batch_tokens: int, max_length: int, rng: np.random.Generator
) -> list[BatchPlan]:
    order = np.argsort(-sizes * (1 + NOISE * rng.random(len(sizes))))
    limit = max(int(sizes.max()), min(max_length, batch_tokens))
    return _by_budget([(row,) for row in rows[order].tolist()], sizes[order], batch_tokens, limit)


def _by_budget(lines: list[tuple[int, ...]], fills: npt.NDArray[Any], batch_tokens: int, limit: int) -> list[BatchPlan]:
    """Neighbouring lines together: as many as the budget holds, fewer where lines of unlike length would pad too much."""
    batches: list[BatchPlan] = []
    begin = width = real = 0
    for i, fill in enumerate(fills.tolist()):
        wider, closed = max(width, round_width(fill, limit)), (i - begin) * width
        slots = (i - begin + 1) * wider
        padded = closed * 2 >= batch_tokens and slots - real - fill > MOST_PADDING * slots
        if i > begin and (slots > batch_tokens or padded):
            batches.append(BatchPlan(tuple(lines[begin:i]), width))
            begin, wider, real = i, round_width(fill, limit), 0
        width, real = wider, real + fill
    batches.append(BatchPlan(tuple(lines[begin:]), width))
    return batches


def collate(rows: Rows, plan: BatchPlan) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one batch of B lines, L wide, with S rows.

    Returns:
        ``tokens`` and ``targets`` (B, L) int32, 0 where padded; ``mask`` (B, L) bool, True where a target is trained;
        ``segments`` (B, L) int32, 1, 2, … for the rows of a line, 0 for padding; ``rows`` (B, L) int32, which of the batch's
        S rows (``plan.rows``) a slot belongs to, 0 for padding, so that masked losses can be summed by row;
        ``single`` () bool, as ``plan.single``.
    """
    shape = (len(plan.lines), plan.width)
    tokens, targets, segments, numbers = (np.zeros(shape, np.int32) for _ in range(4))
    mask = np.zeros(shape, np.bool_)
    number = 0
    for b, line in enumerate(plan.lines):
        begin = 0
        for segment, index in enumerate(line, 1):
            row = rows[index]
            slots = slice(begin, begin + len(row.tokens) - 1)
            tokens[b, slots], targets[b, slots] = row.tokens[:-1], row.tokens[1:]
            mask[b, slots] = True if row.mask is None else row.mask
            segments[b, slots], numbers[b, slots] = segment, number
            begin, number = slots.stop, number + 1
    return {
        "tokens": tokens,
        "targets": targets,
        "mask": mask,
        "segments": segments,
        "rows": numbers,
        "single": np.asarray(plan.single),
    }


def padding(plans: Iterable[BatchPlan], lengths: npt.NDArray[Any]) -> float:
    """The share of all slots that is padding."""
    slots = real = 0
    for plan in plans:
        slots += plan.slots
        real += int(lengths[list(plan.rows)].sum())
    return 1 - real / slots if slots else 0.0
