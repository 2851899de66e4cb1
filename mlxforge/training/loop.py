"""The one training loop, for all objectives.

An update is the gradient of (sum over all its micro-batches) / (count over all of them), so accumulation with unequal
lengths equals one large batch. Everything random is drawn from (seed, step), everything else is in the state: a run that was
killed and resumed ends bit-identical to one that never stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx.utils import tree_map

from mlxforge.core.errors import RunFailed
from mlxforge.core.events import Control, Emit, Evaluated, Sampled, Saved, Scored, StepDone, Warned
from mlxforge.core.settings import TrainSettings
from mlxforge.models.lora import load_weights, trainable
from mlxforge.models.scoring import Scorer
from mlxforge.training.checkpoint import CheckpointStore
from mlxforge.training.evaluate import Score
from mlxforge.training.losses import mean_metrics
from mlxforge.training.objectives import Loss
from mlxforge.training.optim import Optimizer, global_norm, learning_rate


class Stream(Protocol):
    """The micro-batches of a whole run, by index: a pure function of the data, the settings and the seed."""

    def __len__(self) -> int: ...

    def batch(self, index: int) -> Any:
        """The micro-batch number ``index``, over all epochs."""

    def epoch(self, index: int) -> float:
        """Passes over the data that lie before micro-batch ``index``."""


class Best(msgspec.Struct):
    """The best evaluation so far, by validation loss."""

    step: int
    loss: float


class State(msgspec.Struct):
    """All that the loop knows, besides arrays. Saved with each checkpoint."""

    step: int = 0
    tokens: int = 0
    trained: int = 0
    slots: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0
    worse_in_row: int = 0
    train_loss: float | None = None
    best: Best | None = None
    scores: dict[str, dict[str, Any]] = {}
    before: dict[str, dict[str, Any]] = {}
    task: dict[str, float] = {}
    task_before: dict[str, float] = {}
    peak_memory: int = 0
    events: int = 0
    evaluated_at: int = -1
    proven: int | None = None  # last checkpoint whose weights gave a finite loss in the step after it


@dataclass
class Job:
    """What the loop is given.

    ``evaluate`` scores the fixed sets; ``sample`` continues prompts; ``task`` scores the model's own answers, before the first
    update and, with the best weights, after the last, given what ``evaluate`` found with the same weights; ``store`` may be
    None; ``rate`` is the learning rate of an update, of so many.
    """

    scorer: Scorer
    loss: Loss
    stream: Stream
    settings: TrainSettings
    evaluate: Callable[[], Mapping[str, Score]] = dict
    sample: Callable[[], list[tuple[str, str]]] = list
    task: Callable[[Mapping[str, Mapping[str, Any]]], dict[str, float]] = lambda _: {}
    store: CheckpointStore | None = None
    rate: Callable[[TrainSettings, int, int], float] = learning_rate
    event_offset: Callable[[], int] = lambda: 0
    memory_limit: int = 0
    state: State = field(default_factory=State)

    @property
    def steps(self) -> int:
        """Optimizer updates in the run; the last one may have fewer micro-batches."""
        return -(-len(self.stream) // self.settings.accumulate)


@dataclass
class Step:
    """What one update computed, before it is applied."""

    loss: float
    norm: mx.array
    gradients: Any
    metrics: dict[str, float]
    batches: list[Any]


class Loop:
    """Runs a job to its end; ``run`` returns the status: 'finished' or 'interrupted'."""

    def __init__(self, job: Job, emit: Emit, control: Control) -> None:
        self.job, self.emit, self.control = job, emit, control
        self.state, self.settings, self.model = job.state, job.settings, job.scorer.model
        self.optimizer = Optimizer(job.settings)
        self.saved_at = -1
        self._gradient = nn.value_and_grad(self.model, self._terms)

    def run(self) -> str:
        """Trains from the job's state to the last step, or to where the user or a failure ends it."""
        if self.state.evaluated_at < 0:
            best = self._evaluate()
            self.state.task_before = self._ask(self.state.before)
            self._save(best)
        while not self._complete():
            self._update()
            self._housekeeping()
            if self.control.finish and not self._complete():
                return "interrupted"
        if self.state.step < self.job.steps:
            patience = self.settings.patience
            self.emit(Warned(message=f"stopped early: no better validation loss in {patience} evaluations"))
        if self.state.task_before and self.job.store is not None:
            load_weights(self.model, self.job.store.best_weights(), str(self.job.store.run))
            self.state.task = self._ask(self.state.scores or self.state.before)
        return "finished"

    def _complete(self) -> bool:
        """Whether all steps are done or patience has run out."""
        patience = self.settings.patience
        return self.state.step >= self.job.steps or (patience is not None and self.state.worse_in_row >= patience)

    def _terms(self, batch: Any) -> tuple[mx.array, int, dict[str, mx.array]]:
        total, count, metrics = self.job.loss(self.job.scorer, batch)
        return total, count, metrics

    def compute(self, batches: list[Any]) -> Step:
        """Sums over the micro-batches, divided once."""
        total, count = mx.array(0.0), 0
        gradients: Any = None
        metrics: dict[str, Any] = {}
        for batch in batches:
            (part, items, extra), gradient = self._gradient(batch)
            total, count = total + part, count + items
            gradients = gradient if gradients is None else tree_map(mx.add, gradients, gradient)
            metrics = {key: metrics.get(key, 0.0) + value for key, value in extra.items()}
            mx.eval(total, gradients, metrics)
        divisor = max(count, 1)
        gradients = tree_map(lambda g: g / divisor, gradients)
        norm = global_norm(gradients)
        mx.eval(gradients, norm)
        return Step(float(total.item()) / divisor, norm, gradients, mean_metrics(metrics, divisor), batches)

    def update_once(self, batches: list[Any]) -> None:
        """One update as training makes it, which nothing counts or keeps: for a probe."""
        self.model.train()
        step = self.compute(batches)
        self.optimizer.update(self.model, step.gradients, step.norm, self.settings.learning_rate)
        mx.eval(self.model.trainable_parameters(), self.optimizer.rule.state)

    def _update(self) -> None:
        state, started = self.state, time.perf_counter()
        first = state.step * self.settings.accumulate
        indices = range(first, min(first + self.settings.accumulate, len(self.job.stream)))
        mx.random.seed(self.settings.seed * 1_000_003 + state.step)
        self.model.train()
        step = self.compute([self.job.stream.batch(index) for index in indices])
        rate = self.job.rate(self.settings, state.step, self.job.steps)
        finite = _finite(step.loss) and _finite(norm := float(step.norm.item()))
        if finite:
            self.optimizer.update(self.model, step.gradients, step.norm, rate)
            mx.eval(self.model.trainable_parameters(), self.optimizer.rule.state)
            state.skipped_in_row = 0
            state.train_loss = step.loss
            state.proven = state.step if self.saved_at == state.step else state.proven
        else:
            norm = float("nan")
            state.skipped += 1
            state.skipped_in_row += 1
            self.emit(Warned(message=f"step {state.step + 1}: loss or gradient is not finite; the update is skipped"))
        state.step += 1
        self._count(step, rate, norm, not finite, time.perf_counter() - started, indices.stop)

    def _count(self, step: Step, rate: float, norm: float, skipped: bool, seconds: float, cursor: int) -> None:
        state = self.state
        tokens, trained, slots = (sum(getattr(b, key) for b in step.batches) for key in ("real", "trained", "slots"))
        state.tokens += tokens
        state.trained += trained
        state.slots += slots
        state.seconds += seconds
        state.peak_memory = max(state.peak_memory, mx.get_peak_memory())
        self.emit(
            StepDone(
                step=state.step,
                steps=self.job.steps,
                epoch=self.job.stream.epoch(cursor),
                loss=step.loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens=tokens,
                trained=trained,
                slots=slots,
                seconds=seconds,
                skipped=skipped,
                metrics=step.metrics,
                memory_active=mx.get_active_memory(),
                memory_peak=state.peak_memory,
                memory_limit=self.job.memory_limit,
            )
        )

    def _housekeeping(self) -> None:
        """Evaluates and saves as settings and user ask. The last step does both, in this order."""
        step, settings, control = self.state.step, self.settings, self.control
        if self.state.skipped_in_row:
            # These weights may be spoiled: nothing of them is kept.
            if self.state.skipped_in_row >= settings.max_skipped:
                self._diverged()
            return
        every = settings.eval_every or max(1, self.job.steps // 10)
        improved = False
        if step % every == 0 or step == self.job.steps or control.evaluate:
            control.evaluate = False
            improved = self._evaluate()
        if step % (settings.save_every or every) == 0 or improved or self._complete() or control.save or control.finish:
            control.save = False
            self._save(improved)

    def _diverged(self) -> None:
        """Goes back to the last checkpoint that proved good, and gives up."""
        proven = self.state.proven
        if self.job.store is not None and proven is not None:
            self.job.store.go_back(proven)
        raise RunFailed(
            f"{self.state.skipped_in_row} updates in a row had a non-finite loss or gradient; "
            + ("no state before them is known to be good" if proven is None else f"the state of step {proven} is kept"),
            fix=f"start again with a lower learning_rate than {self.settings.learning_rate:g}",
        )

    def _evaluate(self) -> bool:
        """Scores the fixed sets; returns whether the validation loss is the best of the run."""
        state = self.state
        state.evaluated_at = state.step
        self.model.eval()
        scores = dict(self.job.evaluate())
        better = "valid" in scores and _finite(scores["valid"].loss)
        better = better and (state.best is None or scores["valid"].loss < state.best.loss)
        for name, score in scores.items():
            self.emit(
                Evaluated(
                    step=state.step,
                    name=name,
                    loss=score.loss,
                    perplexity=score.perplexity,
                    bpb=score.bpb,
                    tokens=score.tokens,
                    seconds=score.seconds,
                    best=better and name == "valid",
                    metrics=score.metrics,
                )
            )
        plain = {name: score.result() for name, score in scores.items()}
        if state.step == 0:
            state.before = plain
        if better or "valid" not in scores:
            state.scores = plain
        state.worse_in_row = 0 if better else state.worse_in_row + ("valid" in scores)
        if better:
            state.best = Best(state.step, scores["valid"].loss)
        for prompt, text in self.job.sample():
            self.emit(Sampled(step=state.step, prompt=prompt, text=text))
        mx.clear_cache()  # buffers of the evaluation's shapes
        return better

    def _ask(self, evaluated: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Scores the model's own answers to the task; ``evaluated`` is what its weights had in the fixed sets."""
        self.model.eval()
        scores = self.job.task(evaluated)
        if scores:
            self.emit(Scored(step=self.state.step, scores=scores))
            mx.clear_cache()
        return scores

    def _save(self, best: bool) -> None:
        self.saved_at = self.state.step
        if self.job.store is None:
            return
        self.state.events = self.job.event_offset()
        if self._complete():
            self.state.proven = None  # no step comes that could spoil the weights
        plain = msgspec.to_builtins(self.state)
        path = self.job.store.save(trainable(self.model), self.optimizer.state, plain)
        self.emit(Saved(step=self.state.step, path=os.fspath(path), best=best))

    def restore(self) -> None:
        """Takes up the last checkpoint, where there is one."""
        saved = self.job.store.load() if self.job.store else None
        if saved is None:
            return
        weights, optimizer, plain = saved
        assert self.job.store is not None
        load_weights(self.model, weights, str(self.job.store.run))
        if optimizer:
            self.optimizer.state = optimizer
        restored = msgspec.convert({key: value for key, value in plain.items() if key != "files"}, State)
        for name in State.__struct_fields__:
            setattr(self.state, name, getattr(restored, name))
        self.saved_at = self.state.step
        self.job.store.publish(plain)


def _finite(value: float) -> bool:
    return value - value == 0.0
