"""What a run will need, measured on its own batches before it starts: two real updates, of which nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxforge.core.events import Control, ignore
from mlxforge.models.lora import trainable
from mlxforge.training.loop import Job, Loop, Stream

EVALUATION_COST = 0.4  # of a training slot: a forward pass alone, and no gradient of it


def probe(job: Job, evaluation_slots: int, needs: Callable[[Any], float] | None = None) -> dict[str, Any]:
    """Two updates, on the largest micro-batch of the first epoch and on a typical one. They change the job's weights.

    Args:
        needs: what a micro-batch is expected to need, by which the largest is chosen; by default its slots.

    Returns:
        ``memory``: bytes by part, ``total`` their sum and MLX's own peak; ``seconds``: of training and evaluation together.
    """
    largest, typical = largest_and_typical(job.stream, needs)
    loop = Loop(job, ignore, Control())
    arrays = tree_flatten(job.scorer.model.parameters())
    mx.eval([array for _, array in arrays])
    mx.clear_cache()
    # What else is alive in this process is none of the run's.
    others = max(0, mx.get_active_memory() - sum(int(array.nbytes) for _, array in arrays))
    mx.reset_peak_memory()
    loop.update_once([largest])
    # The first update compiles: time is taken of the second.
    started = time.perf_counter()
    loop.update_once([typical])
    seconds = (time.perf_counter() - started) / typical.slots
    peak = mx.get_peak_memory() - others
    adapters = sum(int(array.nbytes) for array in trainable(job.scorer.model).values())
    memory = {
        "weights": sum(int(array.nbytes) for _, array in arrays) - adapters,
        "adapters": adapters,
        "optimizer": sum(int(array.nbytes) for array in loop.optimizer.state.values()),
        "gradients": adapters,
    }
    memory["activations"] = max(0, peak - sum(memory.values()))
    evaluations = len(range(0, job.steps, job.settings.eval_every or max(1, job.steps // 10))) + 1
    work = _slots(job.stream) + EVALUATION_COST * evaluation_slots * evaluations
    return {"memory": memory | {"total": sum(memory.values())}, "seconds": round(seconds * work, 1)}


LOOKED_AT = 64  # micro-batches, and as many of the largest as a forecast looks at
LARGEST = 2


def largest_and_typical(stream: Stream, needs: Callable[[Any], float] | None = None) -> tuple[Any, Any]:
    """The micro-batch that needs most among those of the first epoch, or many of them, and the middle one by size."""
    batches = sorted((stream.batch(index) for index in sample_of(stream)), key=lambda batch: (batch.slots, batch.trained))
    return max(reversed(batches), key=needs) if needs else batches[-1], batches[len(batches) // 2]


def sample_of(stream: Stream) -> list[int]:
    """Indices of micro-batches that stand for all: those of the first epoch, thinned out, and its largest by its plan."""
    plans: Any = getattr(stream, "plan", None)
    first: list[Any] = plans(0) if plans is not None else []
    count = min(len(stream), len(first) or LOOKED_AT)
    chosen = {index * count // min(count, LOOKED_AT) for index in range(min(count, LOOKED_AT))}
    if first:
        for key in ("slots", "width"):
            chosen.update(sorted(range(count), key=lambda i: getattr(first[i], key))[-LARGEST:])
    return sorted(chosen)


def _slots(stream: Stream) -> float:
    """Slots of the whole run, from the mean of many of its micro-batches."""
    batches = [stream.batch(index) for index in sample_of(stream)]
    return len(stream) * sum(batch.slots for batch in batches) / len(batches)
