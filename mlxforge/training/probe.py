"""What a run will need, measured on its own largest batch before it starts."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxforge.core.events import Control, ignore
from mlxforge.models.lora import trainable
from mlxforge.training.loop import Job, Loop, Stream

EVALUATION_COST = 0.4  # of a training slot: a forward pass alone, and no gradient of it


def probe(job: Job, evaluation_slots: int) -> dict[str, Any]:
    """Two forward and backward passes over the largest of the first micro-batches; no update.

    Returns:
        ``memory``: bytes by part; ``seconds``: of training and evaluation together.
    """
    batches = [job.stream.batch(index) for index in range(min(8, len(job.stream)))]
    largest = max(batches, key=lambda batch: batch.slots)
    loop = Loop(job, ignore, Control())
    weights = sum(int(array.nbytes) for _, array in tree_flatten(job.scorer.model.parameters()))
    adapter = sum(int(array.nbytes) for array in trainable(job.scorer.model).values())
    seconds = 0.0
    for _ in range(2):  # the first pass compiles
        mx.clear_cache()
        mx.reset_peak_memory()
        started = time.perf_counter()
        job.scorer.model.train()
        loop.compute([largest])
        seconds = time.perf_counter() - started
    memory = {
        "weights": weights - adapter,
        "trained": adapter,
        "gradients": adapter,
        "optimizer": OPTIMIZER_COPIES[job.settings.optimizer] * adapter,
        "activations": max(0, mx.get_peak_memory() - weights - adapter),
    }
    slots = _slots(job.stream, batches)
    evaluations = len(range(0, job.steps, job.settings.eval_every or max(1, job.steps // 10))) + 1
    work = slots + EVALUATION_COST * evaluation_slots * evaluations
    return {
        "memory": memory | {"total": sum(memory.values())},
        "seconds": round(seconds / largest.slots * work, 1),
    }


# Arrays of the trained weights' size that an update rule keeps.
OPTIMIZER_COPIES = {"adamw": 2, "adafactor": 0, "muon": 1, "lion": 1, "sgd": 1}


def _slots(stream: Stream, batches: list[Any]) -> float:
    """Slots of the whole run, from the mean of its first micro-batches."""
    return len(stream) * sum(batch.slots for batch in batches) / len(batches)
