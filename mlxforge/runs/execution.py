"""What every training run does around the loop: its directory, lock, log, signals, result, and how it goes on after a kill."""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mlxforge.core.config import from_dict, to_dict, to_yaml
from mlxforge.core.errors import ConfigError, Interrupted, MlxforgeError, RunError, RunFailed
from mlxforge.core.eventlog import EventLog
from mlxforge.core.events import Control, Emit, RunEnded, RunStarted, fan_out
from mlxforge.core.files import file_hash, locked, new_directory
from mlxforge.core.settings import CONFIGS, TrainSettings
from mlxforge.models.adapters import adapter_file
from mlxforge.runs.advice import after_training
from mlxforge.runs.record import CONFIG, EVENTS, LAST, RECORD, beside, find_run, write_record
from mlxforge.runs.watch import Watch

PACKAGES = ("mlxforge", "mlx", "mlx-lm", "numpy", "tokenizers", "transformers")


class Prepared(Protocol):
    """What a verb hands over: everything is read and checked, nothing is trained yet."""

    plan: dict[str, Any]
    lineage: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Writes what goes with the adapter into the run's folder."""

    def job(self, run: Path | None, event_offset: Callable[[], int]) -> Any:
        """The loop's job; checkpoints go to ``run``."""


@dataclass(frozen=True)
class RunResult:
    """What came out of a run. ``result`` is the object that ``--json`` prints and ``run.json`` keeps."""

    path: Path
    status: str
    result: dict[str, Any]
    next_steps: list[str] = field(default_factory=list)


def new_run(
    settings: TrainSettings, objective: str, lineage: dict[str, Any], save: Callable[[Path], None] = lambda _: None
) -> Path:
    """Creates the run directory, whole, with ``config.yaml``, ``run.json`` and what ``save`` writes.

    Raises:
        RunError: the name is taken.
    """
    path = free_path(settings, objective)
    record = {
        "name": path.name,
        "objective": objective,
        "status": "running",
        "created": time.time(),
        "model": settings.model,
        "lineage": lineage,
    }
    try:
        with new_directory(path, replace=False) as directory:
            (directory / CONFIG).write_text(to_yaml(settings))
            (directory / RECORD).write_text(json.dumps(record, indent=2))
            (directory / EVENTS).touch()
            (directory / "checkpoints").mkdir()
            save(directory)
    except MlxforgeError:
        if (path / RECORD).exists():  # made by another process in the meantime
            raise _taken(path) from None
        raise
    return path


def free_path(settings: TrainSettings, objective: str) -> Path:
    """Where the run will lie; nothing is written.

    Raises:
        ConfigError: its name is none.
        RunError: the name is taken.
    """
    name = settings.name or _free_name(Path(settings.runs_dir), f"{objective}-{time.strftime('%Y%m%d-%H%M%S')}")
    # 'last' and 'run:NAME' mean a run where one is asked for.
    if Path(name).name != name or name.startswith((".", "run:")) or name == LAST:
        raise ConfigError(f"'{name}' is no name for a run", where="name", fix="use letters, digits, '-' and '_'")
    path = Path(settings.runs_dir) / name
    if path.exists():
        raise _taken(path)
    return path


def _taken(path: Path) -> RunError:
    fix = f"go on with --resume {shlex.quote(path.name)}, or choose another --name"
    return RunError("a run of this name exists", where=str(path), fix=fix)


def _free_name(runs: Path, name: str) -> str:
    number = 1
    while (runs / (free := name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return free


def resumed(runs_dir: str, name: str, objective: str | None = None) -> tuple[Path, TrainSettings, dict[str, Any]]:
    """Directory, settings and record of a run to go on with, of ``objective`` where one is given.

    Raises:
        RunError: no such run, a damaged one, one of another objective, or one that is finished.
    """
    path = find_run(name or "last", Path(runs_dir))
    try:
        record: dict[str, Any] = json.loads((path / RECORD).read_text())
        import yaml

        values = yaml.safe_load((path / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"the run is damaged: {error}", where=str(path), fix="start a new run") from error
    if objective not in (None, record.get("objective")):
        fix = f"mlxforge {record.get('objective')} --resume {shlex.quote(path.name)}"
        raise RunError(f"a run of {record.get('objective')}, not of {objective}", where=str(path), fix=fix)
    if record.get("status") == "finished":
        raise RunError("this run is finished", where=str(path), fix="start a new run, with more epochs perhaps")
    settings = CONFIGS.get(str(record.get("objective")))
    if settings is None:
        raise RunError(f"this mlxforge cannot train '{record.get('objective')}'", where=str(path), fix="upgrade mlxforge")
    kept = from_dict(settings, values, where=str(path / CONFIG))
    adapter = kept.adapter and beside(kept.adapter, path)
    return (
        path,
        msgspec.structs.replace(kept, model=beside(kept.model, path), adapter=adapter, runs_dir=str(path.parent)),
        record,
    )


def check_same_data(record: dict[str, Any], lineage: dict[str, Any], path: Path) -> None:
    """A resumed run needs the model, the data and the adapter that it began with."""
    begun, now = (_needed(one) for one in (record["lineage"], lineage))
    for part in begun:
        if begun[part] != now[part]:
            raise RunError(
                f"the {part} changed since the run began", where=str(path), fix=f"bring the old {part} back, or start a new run"
            )


def _needed(lineage: dict[str, Any]) -> dict[str, Any]:
    parent = lineage.get("parent") or {}
    return {"model": lineage.get("model"), "data": lineage.get("data"), "adapter below": parent.get("hash")}


def lineage_of(settings: TrainSettings, model: dict[str, Any], data: dict[str, str], parent: Path | None) -> dict[str, Any]:
    """Where a run comes from: base model, data, adapter it started from, seed, versions, machine."""
    return {
        "model": model,
        "data": data,
        "parent": parent and {"path": str(parent), "hash": file_hash(adapter_file(parent))},
        "seed": settings.seed,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def interruptible(control: Control, stop_now: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C ends the run after the step at hand, its state saved; a second one stops at once (exit 130).

    Python runs a handler between two of its own instructions, so none while MLX computes. The signal's number is written to
    a pipe all the same, where a thread waits for the second.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_: int, __: Any) -> None:
        control.interrupted = control.finish = True

    def wait_for_second() -> None:
        seen = 0
        while number := os.read(reader, 1):
            seen += number[0] == signal.SIGINT
            if seen == 2:
                stop_now()
                os._exit(Interrupted.exit_code)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=wait_for_second, daemon=True)
    thread.start()
    before, pipe_before = signal.signal(signal.SIGINT, handle), signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(pipe_before)
        signal.signal(signal.SIGINT, before)
        os.close(writer)
        thread.join()
        os.close(reader)


def execute(
    settings: TrainSettings,
    objective: str,
    prepared: Prepared,
    emit: Emit,
    control: Control,
    resume: tuple[Path, dict[str, Any]] | None = None,
) -> RunResult:
    """Runs a prepared job in a run directory, from the start or from its last checkpoint.

    Raises:
        RunFailed: training could not go on; the record says why, what was saved stays.
        Interrupted: the user stopped it by a signal; the state is saved.
    """
    if resume:
        path, record = resume
        check_same_data(record, prepared.lineage, path)
    else:
        path = new_run(settings, objective, prepared.lineage, prepared.save)
        record = json.loads((path / RECORD).read_text())
    with locked(path), EventLog(path / EVENTS) as log:
        run = _Run(settings, objective, path, record, Watch(fan_out([log, emit])))
        job = prepared.job(path, log.offset)

        def stop_now() -> None:
            run.end(job.state, "interrupted", "stopped at once; the last checkpoint stays")
            for cleanup in control.cleanups:
                cleanup()

        with interruptible(control, stop_now):
            return run.train(job, prepared.plan, log, control)


@dataclass
class _Run:
    settings: TrainSettings
    objective: str
    path: Path
    record: dict[str, Any]
    emit: Emit

    def train(self, job: Any, plan: dict[str, Any], log: EventLog, control: Control) -> RunResult:
        from mlxforge.training.loop import Loop

        loop = Loop(job, self.emit, control)
        loop.restore()
        write_record(self.path, self.record | {"status": "running"})
        try:
            log.truncate(job.state.events if job.state.step else 0)
            self.emit(
                RunStarted(
                    run=self.path.name,
                    objective=self.objective,
                    path=str(self.path),
                    config=to_dict(self.settings),
                    plan=plan,
                    step=job.state.step,
                )
            )
            status = loop.run()
        except BaseException as error:
            # A disk that is full now was full before: the first error is the one to tell.
            with suppress(MlxforgeError):
                self.end(job.state, "failed", str(error))
            if isinstance(error, MlxforgeError) and not isinstance(error, RunFailed):
                raise RunFailed(
                    str(error), where=str(self.path), fix=f"then: --resume {shlex.quote(self.path.name)}"
                ) from error
            raise
        stopped = control.reason if status == "interrupted" and not control.interrupted else ""
        ended = self.end(job.state, "stopped" if stopped else status, stopped)
        if control.interrupted and status == "interrupted":
            stop = Interrupted(f"interrupted after step {job.state.step}; the state is saved", fix=ended.next_steps[0])
            stop.result = ended.result
            raise stop
        return ended

    def end(self, state: Any, status: str, reason: str) -> RunResult:
        """Writes the record and tells the listeners how the run ended."""
        result = self.result(state, status)
        steps = after_training(self.path, self.settings, self.objective, status, result)
        write_record(self.path, self.record | {"status": status, "reason": reason, "ended": time.time(), "result": result})
        self.emit(RunEnded(run=self.path.name, status=status, step=state.step, result=result, next_steps=steps, reason=reason))
        return RunResult(self.path, status, result, steps)

    def result(self, state: Any, status: str) -> dict[str, Any]:
        """The one result object: contract of ``--json`` and of ``run.json``."""
        before, after = state.before, state.scores
        return {
            "run": self.path.name,
            "path": str(self.path),
            "objective": self.objective,
            "status": status,
            "steps": state.step,
            "tokens": state.tokens,
            "trained_tokens": state.trained,
            "train_loss": state.train_loss,
            "valid": after.get("valid"),
            "before": before.get("valid"),
            "retention": {"before": before.get("retention"), "after": after.get("retention")},
            "best": msgspec.to_builtins(state.best),
            "task": {name: {"before": value, "after": state.task.get(name)} for name, value in state.task_before.items()},
            "skipped_updates": state.skipped,
            "tokens_per_second": state.tokens / state.seconds if state.seconds else None,
            "peak_memory_bytes": state.peak_memory,
        }
