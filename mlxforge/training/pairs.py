"""Pairs of answers as batches, their log-probabilities under a model, and the reference that is taken before training.

A pair is two sequences, each the prompt and one answer; a judged answer (KTO) goes with the answer of another row to the same
prompt, which its baseline needs. Three layouts give the same loss a pair: a line a sequence, several sequences packed on a
line, or the prompt computed once for both answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlxforge.core.events import Emit, Progress
from mlxforge.core.settings import KtoConfig, Settings
from mlxforge.data.batch import BatchPlan, pack
from mlxforge.models.scoring import Scorer
from mlxforge.training.losses import Terms
from mlxforge.training.preference import PAIR_LOSSES, Answers, Pairs, kto_loss, kto_metrics, pair_metrics

Layout = Literal["single", "packed", "shared"]
Ints = npt.NDArray[np.int64]


class Row(Protocol):
    """A prompt and two answers with their masks: :class:`mlxforge.data.pairs.PairRow`."""

    prompt: npt.NDArray[Any]
    chosen: npt.NDArray[Any]
    chosen_mask: npt.NDArray[Any]
    rejected: npt.NDArray[Any]
    rejected_mask: npt.NDArray[Any]


@dataclass(frozen=True)
class Judged:
    """A judged answer as a row of two: its own answer, and another row's."""

    prompt: npt.NDArray[Any]
    chosen: npt.NDArray[Any]
    chosen_mask: npt.NDArray[Any]
    rejected: npt.NDArray[Any]
    rejected_mask: npt.NDArray[Any]
    desirable: bool


class Mismatched:
    """Judged answers, each beside the answer of another row: the KL baseline of KTO asks how likely answers are that do not
    belong to their prompt (arXiv 2402.01306, section 4.1). Who is beside whom is fixed, so that the reference can be cached.

    Another row's answer is cut where the line would be longer than ``max_length``.
    """

    def __init__(self, rows: Any, max_length: int) -> None:
        self.rows, self.max_length = rows, max_length
        # The next row of another prompt, or the next one where all have the same.
        keys = np.asarray(rows.keys)
        self.other = (np.arange(len(rows)) + 1) % max(len(rows), 1)
        for index in np.flatnonzero(keys == keys[self.other]):
            different = np.flatnonzero(keys != keys[index])
            if len(different):
                self.other[index] = different[np.searchsorted(different, index) % len(different)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Judged:
        own, other = self.rows[index], self.rows[int(self.other[index])]
        room = max(1, self.max_length + 1 - len(own.prompt))
        return Judged(own.prompt, own.answer, own.mask, other.answer[:room], other.mask[:room], bool(own.desirable))

    @property
    def prompts(self) -> Ints:
        """(N,) tokens of each prompt."""
        return np.asarray(self.rows.prompts)

    @property
    def lengths(self) -> Ints:
        """(N,) tokens of the prompt and of both answers."""
        answers = np.asarray(self.rows.lengths) - self.prompts
        return np.asarray(self.rows.lengths) + np.minimum(
            answers[self.other], np.maximum(1, self.max_length + 1 - self.prompts)
        )

    @property
    def trained(self) -> Ints:
        """(N,) trained tokens of the own answers."""
        return np.asarray(self.rows.trained)


class PairSet:
    """N rows of two answers with the reference's log-probabilities (N, 2), which are zeros until they are taken."""

    def __init__(self, rows: Any, shared: bool) -> None:
        self.rows, self.shared = rows, shared
        self.reference = np.zeros((len(rows), 2), np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index], self.reference[index]

    @property
    def rows_hash(self) -> str:
        """A hash of the rows in their order, and of who is beside whom."""
        rows = getattr(self.rows, "rows", self.rows)
        return f"{type(self.rows).__name__} {rows.hash}"

    @property
    def lengths(self) -> Ints:
        """(N,) tokens that a pair costs."""
        lengths = np.asarray(self.rows.lengths)
        return lengths if self.shared else lengths + np.asarray(self.rows.prompts)

    @property
    def trained(self) -> Ints:
        """(N,) trained tokens of both answers."""
        return np.asarray(self.rows.trained)


@dataclass(frozen=True)
class PairBatch:
    """P pairs as S = 2 P sequences, chosen ones first.

    ``tokens`` are lines of sequences, or with ``prompts`` of answers alone; ``positions`` (N,) the hidden state that predicts
    each trained token, ``targets`` (N,) the token, ``owners`` (N,) its sequence; ``counts`` and ``reference`` (S,).
    """

    tokens: mx.array
    segments: mx.array | None
    prompts: mx.array | None
    prompt_lengths: mx.array | None
    positions: mx.array
    targets: mx.array
    owners: mx.array
    counts: mx.array
    reference: mx.array
    desirable: mx.array
    real: int
    trained: int
    slots: int

    @property
    def size(self) -> int:
        """Pairs."""
        return int(self.counts.shape[0]) // 2


def collate_pairs(rows: Any, plan: BatchPlan, layout: Layout = "single", capacity: int = 0) -> PairBatch:
    """The batch of the pairs that a plan names. ``capacity`` is the width of a packed line."""
    found = [rows[index] for index in plan.rows]
    pairs = [row for row, _ in found]
    reference = np.stack([reference for _, reference in found])
    answers = [(row.chosen, row.chosen_mask) for row in pairs] + [(row.rejected, row.rejected_mask) for row in pairs]
    prompts = [row.prompt for row in pairs] * 2
    make = _shared if layout == "shared" else partial(_lines, capacity=capacity if layout == "packed" else 0)
    arrays, positions = make(prompts, answers)
    owners = np.repeat(np.arange(len(answers)), [int(mask.sum()) for _, mask in answers])
    targets = np.concatenate([answer[mask] for answer, mask in answers])
    return PairBatch(
        **arrays,
        positions=mx.array(positions.astype(np.int32)),
        targets=mx.array(targets.astype(np.int32)),
        owners=mx.array(owners.astype(np.int32)),
        counts=mx.array(np.bincount(owners, minlength=len(answers)).astype(np.float32)),
        reference=mx.array(reference.T.reshape(-1)),
        desirable=mx.array([getattr(row, "desirable", True) for row in pairs]),
        trained=len(targets),
    )


Placed = tuple[dict[str, Any], npt.NDArray[np.int64]]
Answer = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def _lines(prompts: Sequence[npt.NDArray[Any]], answers: Sequence[Answer], capacity: int) -> Placed:
    """Whole sequences, one a line, or packed into lines of ``capacity``."""
    inputs = [np.concatenate([prompt, answer])[:-1] for prompt, (answer, _) in zip(prompts, answers, strict=True)]
    sizes = [len(one) for one in inputs]
    lines = pack(sizes, max(capacity, *sizes)) if capacity else [[index] for index in range(len(inputs))]
    width = max(sum(sizes[index] for index in line) for line in lines)
    tokens, segments = np.zeros((len(lines), width), np.int32), np.zeros((len(lines), width), np.int32)
    positions: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(inputs)
    for number, line in enumerate(lines):
        begin = 0
        for segment, index in enumerate(line, 1):
            slots = slice(begin, begin + sizes[index])
            tokens[number, slots], segments[number, slots] = inputs[index], segment
            first = number * width + begin + len(prompts[index]) - 1
            positions[index] = first + np.flatnonzero(answers[index][1])
            begin = slots.stop
    arrays = {
        "tokens": mx.array(tokens),
        "segments": mx.array(segments) if segments.max() > 1 else None,
        "prompts": None,
        "prompt_lengths": None,
        "real": sum(sizes),
        "slots": tokens.size,
    }
    return arrays, np.concatenate(positions)


def _shared(prompts: Sequence[npt.NDArray[Any]], answers: Sequence[Answer]) -> Placed:
    """Prompts (P, W) once, and answers (S, R) behind them; the first token of an answer is predicted by its prompt's last."""
    count = len(prompts) // 2
    lengths = np.array([len(prompt) for prompt in prompts])
    heads = np.zeros((count, lengths.max()), np.int32)
    for row, prompt in enumerate(prompts[:count]):
        heads[row, : len(prompt)] = prompt
    width = max(1, max(len(answer) for answer, _ in answers) - 1)
    tails = np.zeros((len(answers), width), np.int32)
    positions = []
    for number, (answer, mask) in enumerate(answers):
        tails[number, : len(answer) - 1] = answer[:-1]
        places = heads.size + number * width + np.flatnonzero(mask) - 1
        if mask[0]:
            places[0] = (number % count) * heads.shape[1] + lengths[number] - 1
        positions.append(places)
    arrays = {
        "tokens": mx.array(tails),
        "segments": None,
        "prompts": mx.array(heads),
        "prompt_lengths": mx.array(lengths[:count].astype(np.int32)),
        "real": int(lengths[:count].sum()) + sum(len(answer) - 1 for answer, _ in answers),
        "slots": heads.size + tails.size,
    }
    return arrays, np.concatenate(positions)


def sequence_log_probs(scorer: Scorer, batch: PairBatch) -> mx.array:
    """The sum of log p over the trained tokens of each sequence (S,)."""
    if batch.prompts is None or batch.prompt_lengths is None:
        hidden = scorer.hidden(batch.tokens, batch.segments)
        hidden = hidden.reshape(-1, hidden.shape[-1])
    else:
        hidden = scorer.hidden_shared(batch.prompts, batch.prompt_lengths, batch.tokens)
    logps = scorer.log_probs(hidden[batch.positions], batch.targets)
    return mx.zeros(batch.counts.shape).at[batch.owners].add(logps)


Loss = Callable[[Scorer, PairBatch], Terms]


def pair_terms(objective: str, settings: Settings) -> Loss:
    """The loss of an objective over pairs, summed, with its metrics."""
    loss = PAIR_LOSSES[objective](settings)

    def terms(scorer: Scorer, batch: PairBatch) -> Terms:
        chosen, rejected = sequence_log_probs(scorer, batch).reshape(2, -1)
        pairs = Pairs(chosen, rejected, *batch.counts.reshape(2, -1), *batch.reference.reshape(2, -1))
        metrics = pair_metrics(Pairs(*map(mx.stop_gradient, pairs)), settings)
        return Terms(loss(pairs).sum(), batch.size, {name: value.sum() for name, value in metrics.items()})

    return terms


def kto_terms(settings: Settings) -> Loss:
    """The loss over judged answers, summed, with its metrics."""
    assert isinstance(settings, KtoConfig)
    loss = kto_loss(settings)

    def terms(scorer: Scorer, batch: PairBatch) -> Terms:
        own, other = sequence_log_probs(scorer, batch).reshape(2, -1)
        reference = batch.reference.reshape(2, -1)
        tokens = batch.counts.reshape(2, -1)[0]
        answers = Answers(own, tokens, batch.desirable, reference[0], mx.stop_gradient(other), reference[1])
        metrics = kto_metrics(Answers(*map(mx.stop_gradient, answers)), settings)
        return Terms(loss(answers).sum(), batch.size, {name: _of_kind(name, value, metrics) for name, value in metrics.items()})

    return terms


def _of_kind(name: str, values: mx.array, metrics: dict[str, mx.array]) -> mx.array:
    """A metric of wanted or unwanted answers alone with their number, else its sum."""
    kind = {"chosen": "desirable", "rejected": "undesirable"}.get(name.rpartition("_")[2])
    return mx.stack([values.sum(), metrics[kind].sum()]) if kind else values.sum()


def take_reference(scorer: Scorer, batches: Iterable[tuple[Sequence[int], PairBatch]], sets: PairSet, emit: Emit) -> None:
    """Fills ``sets.reference`` with the log-probabilities under the model as it is now, in batches of the loop's own layout."""
    scorer.model.eval()
    done = 0
    emit(Progress(task="reference", done=0, total=len(sets), unit="pairs"))
    for rows, batch in batches:
        sums = sequence_log_probs(scorer, batch)
        mx.eval(sums)
        sets.reference[list(rows)] = np.array(sums).reshape(2, -1).T
        done += len(rows)
        emit(Progress(task="reference", done=done, total=len(sets), unit="pairs"))
    mx.clear_cache()
