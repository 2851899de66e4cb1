"""Experiment trackers as listeners: TensorBoard, Weights & Biases, MLflow, trackio.

Each run says in its settings which ones follow it. They hear the same events as the screen, and no more of them: numbers and
settings go out, texts and what is in the environment never do. A tracker that fails is told once and left out; the run goes on.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mlxforge.core import events as ev
from mlxforge.core.files import bytes_hash

PROJECT = "mlxforge"
PASSWORD = re.compile(r"//[^/@\s]+@")  # in an address: //user:password@host
FLUSH_SECONDS = 5.0


class Tracker(Protocol):
    """One tracker's side of one run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes numbers, all finite."""

    def end(self, status: str) -> None:
        """The run has ended: finished, interrupted or failed."""


class Trackers:
    """A listener that opens the trackers of each run that begins, and closes them at its end. As a context manager it
    closes what is open when it is left.

    Args:
        warn: hears what went wrong.
    """

    def __init__(self, warn: ev.Emit = ev.ignore) -> None:
        self.warn = warn
        self.open: dict[str, Tracker] = {}

    def __call__(self, event: ev.Event) -> None:
        """Passes on what is a number."""
        if isinstance(event, ev.RunStarted):
            self.close("interrupted")
            for name in event.config.get("trackers") or ():
                self._try(name, partial(self._begin, name, event))
        elif isinstance(event, ev.RunEnded):
            self.close(event.status)
        elif self.open and isinstance(event, (ev.StepDone, ev.Evaluated, ev.Scored)):
            values = numbers(event)
            for name, tracker in list(self.open.items()):
                self._try(name, partial(tracker.log, event.step, values))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close("interrupted")

    def close(self, status: str) -> None:
        """Ends all that is open."""
        for name, tracker in list(self.open.items()):
            self._try(name, partial(tracker.end, status))
        self.open.clear()

    def _begin(self, name: str, event: ev.RunStarted) -> None:
        self.open[name] = TRACKERS[name](event)

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # foreign code: whatever it raises must not end a run
            self.open.pop(name, None)
            lines = PASSWORD.sub("//…@", str(error)).strip().splitlines()
            what = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
            self.warn(ev.Warned(message=f"{name} does not follow the run any more: {what}"))


def numbers(event: ev.StepDone | ev.Evaluated | ev.Scored) -> dict[str, float]:
    """The numbers of an event, as ``train/loss``, ``valid/bpb``, ``task/exact_match``; what is not finite is left out."""
    found: dict[str, float | None] = {}
    if isinstance(event, ev.StepDone):
        found = {"train/loss": event.loss, "train/learning_rate": event.learning_rate, "train/grad_norm": event.grad_norm}
        found |= {"train/epoch": event.epoch, "train/memory_peak": float(event.memory_peak)}
        found |= {"train/tokens_per_second": event.tokens / event.seconds} if event.seconds > 0 else {}
        found |= {f"train/{key}": value for key, value in event.metrics.items()}
    elif isinstance(event, ev.Evaluated):
        found = {key: getattr(event, key) for key in ("loss", "perplexity", "bpb")} | dict(event.metrics)
        found = {f"{event.name}/{key}": value for key, value in found.items()}
    else:
        found = {f"task/{key}": value for key, value in event.scores.items()}
    return {key: float(value) for key, value in found.items() if value is not None and math.isfinite(value)}


def identity(event: ev.RunStarted) -> str:
    """What stays the same of a run that is resumed or moved: made of its name and of when it was created."""
    try:
        created = json.loads((Path(event.path) / "run.json").read_bytes()).get("created")
    except (OSError, ValueError):
        created = event.path
    return bytes_hash(event.run, str(created))[:16]


class TensorBoard:
    """Event files in ``RUN/tensorboard``."""

    def __init__(self, event: ev.RunStarted) -> None:
        from tensorboardX import SummaryWriter

        # Files are named by the second: the step keeps a run that is resumed at once from replacing its own.
        again = {"purge_step": event.step + 1, "filename_suffix": f".{event.step}"} if event.step else {}
        self.writer = SummaryWriter(str(Path(event.path) / "tensorboard"), flush_secs=30, **again)
        if not event.step:
            self.writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in flat(event.config)), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def end(self, status: str) -> None:  # noqa: ARG002
        """Closes the file."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases: online where somebody is logged in, else offline in ``RUN/wandb``; ``WANDB_MODE`` decides."""

    def __init__(self, event: ev.RunStarted) -> None:
        import wandb

        folder = Path(event.path).absolute()
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        # No console, no code, no command line, no machine: only what is logged here.
        quiet = wandb.Settings(
            mode=mode, silent=True, console="off", save_code=False, disable_git=True, disable_job_creation=True,
            x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=event.run,
            id=identity(event),
            resume="allow",
            dir=str(folder),
            group=event.objective,
            config=event.config,
            settings=quiet,
            reinit="create_new",
        )
        # Steps of a resumed run come twice: W&B's own counter only rises.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self.run.log({"step": step, **values})

    def end(self, status: str) -> None:
        """Ends the run there; a failed one is marked as failed."""
        self.run.finish(exit_code=int(status == "failed"))


class MLflow:
    """A run of MLflow at ``MLFLOW_TRACKING_URI``, else in the folder ``mlruns`` beside that of the runs.

    Values are sent every few seconds: one message for each would hold up training.
    """

    ENDS = {"finished": "FINISHED", "failed": "FAILED"}

    def __init__(self, event: ev.RunStarted) -> None:
        # A server that does not answer must not hold up training for minutes, as it would by default.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        place = Path(event.path).absolute().parent.parent / "mlruns"
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or place.as_uri())
        name, key = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT, identity(event)
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        same = self.client.search_runs([experiment], filter_string=f"tags.run_identity = '{key}'", max_results=1)
        tags = {"run_identity": key, "objective": event.objective}
        made = same[0] if same else self.client.create_run(experiment, run_name=event.run, tags=tags)
        self.id = made.info.run_id
        if same:
            self.client.update_run(self.id, status="RUNNING")
        else:
            params = [Param(name, str(value)[:500]) for name, value in flat(event.config)]
            for begin in range(0, len(params), 100):
                self.client.log_batch(self.id, params=params[begin : begin + 100])
        self.waiting: list[Any] = []
        self.sent = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps the values, and sends them when it is time."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.waiting += [Metric(key.replace(" ", "_"), value, now, step) for key, value in values.items()]
        if time.monotonic() - self.sent > FLUSH_SECONDS or len(self.waiting) > 900:
            self._send()

    def end(self, status: str) -> None:
        """Sends the rest."""
        self._send()
        self.client.set_terminated(self.id, self.ENDS.get(status, "KILLED"))

    def _send(self) -> None:
        rows, self.waiting, self.sent = self.waiting, [], time.monotonic()
        for begin in range(0, len(rows), 1000):
            self.client.log_batch(self.id, metrics=rows[begin : begin + 1000])


class Trackio:
    """A run of trackio in its own folder (``TRACKIO_DIR``), or the Space that its variables name; ``trackio show`` draws it."""

    def __init__(self, event: ev.RunStarted) -> None:
        with hushed():
            import trackio

            self.run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
                name=f"{event.run}-{identity(event)[:6]}",
                group=event.objective,
                config=dict(event.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self.run.log(dict(values), step=step)

    def end(self, status: str) -> None:  # noqa: ARG002
        """Writes what waits."""
        import trackio

        with hushed():
            trackio.finish()  # a run that is ended by itself would be ended, and talked of, again at exit


TRACKERS: dict[str, Callable[[ev.RunStarted], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted key."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@contextmanager
def hushed() -> Iterator[None]:
    """What foreign code prints must not land in a screen or in a result."""
    with redirect_stdout(io.StringIO()):
        yield
