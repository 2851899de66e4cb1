"""A search over settings: trials are ordinary runs NAME-t01, NAME-t02, … and the only truth about what was tried.

``runs/NAME/sweep.json`` holds what was asked for, ``runs/NAME/best.yaml`` the best settings so far. A sweep that was killed
goes on with the trial at hand and ends as if it had not been.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.config import from_dict, to_dict
from mlxforge.core.errors import Interrupted, MlxforgeError, RunError, RunFailed, did_you_mean
from mlxforge.core.eventlog import replay
from mlxforge.core.events import Control, Emit, Evaluated, Event, Noted, Progress, RunStarted, StepDone, Warned, ignore
from mlxforge.core.files import disk_errors, locked, write_atomic
from mlxforge.core.settings import CONFIGS, TrainSettings
from mlxforge.runs import train as runs
from mlxforge.runs.execution import free_path
from mlxforge.runs.record import EVENTS, RECORD, changed_settings, read_config, read_record, runs_dir_flag
from mlxforge.runs.space import Dimension, Metric, applied, dimensions, metric, points, value_of
from mlxforge.runs.suggest import Trial, check_installed, hopeless, suggest
from mlxforge.runs.text import anchored

SWEEP, BEST = "sweep.json", "best.yaml"
DEFAULT_METRIC = "valid.loss"
STOPPED = "stopped"
TRIALS = 8


class Asked(msgspec.Struct, kw_only=True):
    """What a sweep was asked for: the content of ``sweep.json``. ``config`` are the settings that all trials share."""

    name: str
    objective: str
    config: dict[str, Any]
    over: list[str]
    trials: int | None = TRIALS
    metric: str = DEFAULT_METRIC
    seed: int = 0
    grid: bool = False
    prune: bool = True
    created: float = 0.0


@dataclass
class Tried:
    """One trial as its run directory tells it. ``value`` is the metric; None of a trial that did not finish.

    ``diverged``: its loss or gradient was no longer finite, which is the fault of its settings.
    """

    run: str
    settings: dict[str, Any]
    status: str
    steps: int = 0
    value: float | None = None
    reason: str = ""
    curve: list[float] = field(default_factory=list)
    diverged: bool = False

    @property
    def ended(self) -> bool:
        """Whether it needs no more work: it finished, was given up, or diverged."""
        return self.status in ("finished", STOPPED) or self.diverged


@dataclass(frozen=True)
class SweepResult:
    """All trials, the best of them, and the file of its settings. ``result`` is what ``--json`` prints."""

    path: Path
    trials: list[Tried]
    best: Tried | None
    result: dict[str, Any]
    next_steps: list[str]


class Sweep:
    """A sweep whose settings are checked.

    Raises:
        ConfigError, RunError, MissingExtraError: it cannot be; nothing is written.
    """

    def __init__(self, asked: Asked) -> None:
        check_installed()
        self.asked = asked
        self.config: TrainSettings = from_dict(CONFIGS[asked.objective], asked.config, where=SWEEP)
        self.space: list[Dimension] = dimensions(type(self.config), asked.over)
        self.metric: Metric = metric(asked.metric, self.config, self.space)
        # 0 where one is a range. All that there is to try is tried once each, in place of some of it twice.
        combinations = math.prod(len(one.values) for one in self.space)
        self.grid = list(points(self.space)) if asked.grid or 0 < combinations <= (asked.trials or TRIALS) else []
        wanted = asked.trials or len(self.grid) or TRIALS
        self.trials = min(wanted, len(self.grid)) if self.grid else wanted
        self.runs_dir = Path(self.config.runs_dir)
        self.path = self.runs_dir / asked.name

    @property
    def folder(self) -> str:
        """``--runs-dir`` where it is not the usual one."""
        return runs_dir_flag(self.config.runs_dir)

    def run_of(self, number: int) -> str:
        """The name of a trial's run; trials count from 1."""
        return f"{self.asked.name}-t{number:02d}"

    def tried(self) -> list[Tried]:
        """The trials so far, in order."""
        found: list[Tried] = []
        for number in itertools.count(1):
            path = self.runs_dir / self.run_of(number)
            if not (path / RECORD).is_file():
                return found
            found.append(self.read(path))
        raise AssertionError  # count does not end

    def read(self, path: Path) -> Tried:
        """A trial as its run at ``path`` tells it."""
        record, kept = read_record(path), read_config(path)
        config = from_dict(type(self.config), kept, where=str(path))
        result = record.get("result") or {}
        status, steps = str(record.get("status")), int(result.get("steps") or 0)
        value = self.metric.of(result) if status == "finished" else None
        settings = {one.key: value_of(config, one.key) for one in self.space}
        curve = Curve(self.metric)
        for event in replay(path / EVENTS):
            curve(event)
        diverged = status == "failed" and int(result.get("skipped_updates") or 0) >= config.max_skipped
        return Tried(path.name, settings, status, steps, value, str(record.get("reason") or ""), curve.values, diverged)

    def rank(self, tried: Tried) -> float:
        """Of a finished trial, the less the better."""
        return (-1.0 if self.metric.higher else 1.0) * (tried.value or 0.0)

    def best(self, trials: Sequence[Tried]) -> Tried | None:
        """The finished trial with the best value, the first of equals."""
        return min((one for one in trials if one.value is not None), key=self.rank, default=None)

    def settings(self, number: int, past: Sequence[Tried]) -> dict[str, Any]:
        """What trial ``number`` tries."""
        if self.grid:
            return self.grid[number - 1]
        return suggest(self.space, [_trial(one) for one in past], self.asked.seed, self.metric.higher)

    def config_of(self, number: int, values: dict[str, Any]) -> TrainSettings:
        """All settings of a trial."""
        return msgspec.structs.replace(applied(self.config, values), name=self.run_of(number))


class Curve:
    """Hears a run and keeps the judged figure at each evaluation but the first, which comes before training.

    A task is asked only at the end; its trials are held against each other by the validation loss.
    """

    def __init__(self, metric: Metric) -> None:
        self.set, self.figure = (metric.set, metric.figure) if metric.set != "task" else ("valid", "loss")
        self.sign = -1.0 if metric.higher and metric.set == "task" else 1.0
        self.points: list[tuple[int, float]] = []

    @property
    def values(self) -> list[float]:
        """The figures in order."""
        return [value for _, value in self.points]

    def __call__(self, event: Event) -> bool:
        """Takes an event; returns whether it added a figure. What lies after the step of a resumed run is forgotten."""
        if isinstance(event, RunStarted):
            self.points = [point for point in self.points if point[0] <= event.step]
        if not (isinstance(event, Evaluated) and event.name == self.set and event.step):
            return False
        value = event.metrics.get(self.figure, getattr(event, self.figure, None))
        self.points.append((event.step, self.sign * (math.nan if value is None else value)))
        return True


def new_sweep(asked: Asked) -> Sweep:
    """A sweep that is asked for anew, checked; nothing is written.

    Raises:
        RunError: its name, or that of one of its runs, is taken.
    """
    config = msgspec.structs.replace(from_dict(CONFIGS[asked.objective], asked.config), name=asked.name or None)
    path = free_path(config, f"sweep-{asked.objective}")
    plain = to_dict(anchored(msgspec.structs.replace(config, name=None)))
    sweep = Sweep(msgspec.structs.replace(asked, name=path.name, config=plain, created=time.time()))
    if taken := next(iter(sweep.tried()), None):
        raise RunError("a run of this sweep's names exists", where=str(sweep.runs_dir / taken.run), fix="choose another --name")
    return sweep


def old_sweep(name: str, runs_dir: str) -> Sweep:
    """The sweep of that name, or the newest with ``last``.

    Raises:
        RunError: there is none, or its file is damaged.
    """
    known = sorted(Path(runs_dir).glob(f"*/{SWEEP}"), key=lambda file: file.stat().st_mtime)
    names = {file.parent.name: file for file in known}
    if not known:
        raise RunError("no sweep here", where=runs_dir, fix="choose the folder with --runs-dir, or begin one")
    file = known[-1] if name == "last" else names.get(name)
    if file is None:
        raise RunError(f"no sweep '{name}' in {runs_dir}", fix=did_you_mean(name, names))
    try:
        asked = msgspec.json.decode(file.read_bytes(), type=Asked)
    except (OSError, msgspec.MsgspecError) as error:
        raise RunError(f"damaged: {error}", where=str(file), fix="begin a new sweep") from error
    asked.config["runs_dir"] = str(file.parent.parent)
    return Sweep(msgspec.structs.replace(asked, name=file.parent.name))


def sweep(search: Sweep, emit: Emit = ignore, listeners: Sequence[Emit] = ()) -> SweepResult:
    """Runs the trials that are still to run. Blocks until all are done; Ctrl-C ends after the step at hand.

    ``emit`` hears the progress of the whole, a note a trial and each warning once; ``listeners`` every event of every run.

    Raises:
        Interrupted: by the user; ``--resume`` goes on.
        RunFailed: a trial could not go on for another reason than its settings.
    """
    asked, made = search.asked, not search.runs_dir.exists()
    with disk_errors(search.path):
        search.path.mkdir(parents=True, exist_ok=True)
    with locked(search.path):
        emit = once(emit)
        write_atomic(search.path / SWEEP, json.dumps(msgspec.to_builtins(asked), indent=2, ensure_ascii=False) + "\n")
        past = search.tried()
        open_trial = bool(past) and not past[-1].ended
        try:
            for number in range(len(past) + (not open_trial), search.trials + 1):
                before = past[: number - 1]
                past = [*before, _run(search, number, before, emit, listeners, open_trial and number == len(past))]
                _keep_best(search, past)
        except (KeyboardInterrupt, Interrupted) as stop:
            raise _interrupted(search) from stop
        except MlxforgeError:
            if not search.tried():  # wrong data or settings: nothing was begun
                shutil.rmtree(search.path)
                _remove_empty(search.runs_dir, made)
            raise
    return result_of(search)


def _remove_empty(folder: Path, made: bool) -> None:
    if made and not any(folder.iterdir()):
        folder.rmdir()


def once(emit: Emit) -> Emit:
    """An ``emit`` that passes a warning on the first time only: every trial has the same data and the same machine."""
    told: set[str] = set()

    def pass_on(event: Event) -> None:
        if isinstance(event, Warned) and event.message in told:
            return
        told.update([event.message] if isinstance(event, Warned) else [])
        emit(event)

    return pass_on


def _run(search: Sweep, number: int, past: list[Tried], emit: Emit, listeners: Sequence[Emit], resume: bool) -> Tried:
    path, trials = search.runs_dir / search.run_of(number), [_trial(one) for one in past]
    curve, control = Curve(search.metric), Control()
    if resume:
        for event in replay(path / EVENTS):
            curve(event)
    values = search.read(path).settings if resume else search.settings(number, past)

    def tell(done: float) -> None:
        emit(Progress(task=f"{search.trials} trials", done=math.floor(100 * done / search.trials), total=100, unit="%"))

    def hear(event: Event) -> None:
        if isinstance(event, StepDone):
            tell(number - 1 + event.step / event.steps)
        elif isinstance(event, Warned) or (isinstance(event, Progress) and event.total):
            emit(event)
        if curve(event) and search.asked.prune and hopeless(curve.values, trials, search.metric.higher):
            control.finish = True
            control.reason = f"sweep {search.asked.name}: worse than the median of the finished trials at this step"

    try:
        if resume:
            runs.resume(path.name, str(search.runs_dir), [hear, *listeners], control, search.asked.objective)
        else:
            runs.train(search.config_of(number, values), [hear, *listeners], control)
    except RunFailed:
        if not search.read(path).diverged:
            raise
    _forget_model()
    tried = search.read(path)
    if tried.status == "finished" and tried.value is None:
        raise RunFailed(f"no {search.metric.name} in its result", where=str(path), fix="choose another --metric")
    if tried.status != "finished":
        tell(number)
    emit(Noted(message=f"{path.name}  {shown(values)}  {outcome(search.metric, tried)}"))
    return tried


def _forget_model() -> None:
    """Frees the model of a trial before that of the next is read; a peak of memory is then a trial's own."""
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()


def shown(values: dict[str, Any]) -> str:
    """``learning_rate=0.0001 lora.rank=8``."""
    return " ".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items())


def outcome(metric: Metric, tried: Tried) -> str:
    """``valid.loss 1.234``, or why there is none."""
    if tried.value is not None:
        return f"{metric.name} {tried.value:.4f}"
    return f"{tried.status} after step {tried.steps}" + ": diverged" * tried.diverged


def _trial(tried: Tried) -> Trial:
    # One that diverged has no curve: it counts as the worst.
    return Trial(tried.settings, [] if tried.diverged else tried.curve, tried.value)


def _keep_best(search: Sweep, trials: Sequence[Tried]) -> None:
    import yaml

    if (best := search.best(trials)) is None:
        return
    config = to_dict(applied(search.config, best.settings))
    nested: dict[str, Any] = {}
    for key, value in changed_settings(config, search.asked.objective).items():
        head, dot, tail = key.partition(".")
        if key not in ("name", "runs_dir"):
            (nested.setdefault(head, {}) if dot else nested)[tail or head] = value
    title = f"# The best of sweep {search.asked.name}: {search.metric.name} {best.value:.4f}, in run {best.run}.\n"
    use = f"# mlxforge {search.asked.objective} -c {shlex.quote(str(search.path / BEST))}\n"
    write_atomic(search.path / BEST, title + use + yaml.safe_dump(nested, sort_keys=False, allow_unicode=True))


def _interrupted(search: Sweep) -> Interrupted:
    command = f"mlxforge sweep{search.folder} --resume {shlex.quote(search.asked.name)}"
    stop = Interrupted("the sweep is interrupted; its trials are saved", fix=command)
    stop.result = result_of(search).result | {"status": "interrupted"}
    return stop


def result_of(search: Sweep) -> SweepResult:
    """What a sweep has found so far."""
    trials = search.tried()
    best = search.best(trials)
    keys = ("run", "status", "reason", "settings", "value", "steps")
    plain = [{key: getattr(one, key) for key in keys} for one in trials]
    result: dict[str, Any] = {
        "sweep": search.asked.name,
        "path": str(search.path),
        "objective": search.asked.objective,
        "status": "finished" if len(trials) >= search.trials and all(one.ended for one in trials) else "unfinished",
        "metric": search.metric.name,
        "better": "higher" if search.metric.higher else "lower",
        "over": search.asked.over,
        "seed": search.asked.seed,
        "trials": plain,
        "best": None,
    }
    steps = [f"mlxforge lr-find {search.asked.objective} -c FILE"]
    if best is not None:
        file = search.path / BEST
        result["best"] = {"run": best.run, "value": best.value, "settings": best.settings, "config": str(file)}
        steps = [f"mlxforge {search.asked.objective}{search.folder} -c {shlex.quote(str(file))}"]
        others = sorted((one for one in trials if one.value is not None and one is not best), key=search.rank)
        steps += [f"mlxforge runs compare{search.folder} {shlex.join([best.run, other.run])}" for other in others[:1]]
        result["at_the_end_of_its_range"] = [one.key for one in search.space if one.at_end(best.settings[one.key])]
    return SweepResult(search.path, trials, best, result, steps)


def forecast(search: Sweep, emit: Emit = ignore) -> dict[str, Any]:
    """What a sweep will run, with the seconds of one trial by a probe; the tokens that it reads are kept for the trials."""
    config = runs.settled(search.config_of(1, search.settings(1, [])))
    prepared = runs.prepare(config, emit)
    from mlxforge.training.probe import probe  # after it: OpenBLAS has to be loaded before MLX

    found = probe(prepared.job(None, lambda: 0), prepared.evaluation_slots)
    plain = result_of(search).result
    kept = {key: plain[key] for key in ("sweep", "objective", "metric", "better", "over", "seed")}
    return kept | {"trials": search.trials, "steps": prepared.plan["steps"], "seconds": found["seconds"]}
