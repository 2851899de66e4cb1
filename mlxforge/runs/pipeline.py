"""The whole road: what is to be done is planned and checked before anything runs, and goes on where it was stopped."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import ConfigError, Interrupted, MlxforgeError
from mlxforge.core.eventlog import EVENTS, EventLog
from mlxforge.core.events import Control, Emit, RunEnded, StageEnded, StageStarted, fan_out
from mlxforge.evals.road import Action
from mlxforge.runs.pipeline_eval import check_gate
from mlxforge.runs.pipeline_gains import summed_up
from mlxforge.runs.pipeline_order import Made, Road, Step
from mlxforge.runs.pipeline_state import DONE, FOLDER, MISSING, RUNNING, Record, differences, finished, key_of
from mlxforge.runs.pipeline_train import free_run
from mlxforge.runs.project import Project, find_project, read_project
from mlxforge.runs.stage_settings import TRAINING
from mlxforge.runs.stages import STAGES

# Opens what shows one step, and yields its listener and what a user asks of it.
Shown = Callable[[Step, "dict[str, str]"], AbstractContextManager["tuple[Emit, Control]"]]


@dataclass(frozen=True)
class Planned:
    """What happens to a step, and why."""

    step: Step
    action: Action
    why: str = ""

    @property
    def works(self) -> bool:
        """Whether something is done."""
        return self.action in ("run", "resume")


@dataclass
class Pipeline:
    """A project with its road, and what is to be done of it."""

    road: Road
    planned: list[Planned]
    notes: list[str] = field(default_factory=list)

    @property
    def project(self) -> Project:
        """The project."""
        return self.road.project

    @property
    def work(self) -> list[Planned]:
        """What is to be done."""
        return [one for one in self.planned if one.works]


def open_pipeline(file: Path | None = None, start: str | None = None, only: str | None = None) -> Pipeline:
    """Reads a project and plans what is to be done; nothing is run or written.

    Args:
        start: a stage that is done again, with what follows from it; those before are taken as they are.
        only: a stage that alone is done again.

    Raises:
        ConfigError: mistakes in the file, a circle, an unknown stage; or what is missing for a stage, a line each.
    """
    if start and only:
        raise ConfigError("--from and --only are two choices", where="command line", fix="give one of them")
    road = Road(read_project(find_project(file)), STAGES)
    planned = plan(road, start, only)
    problems = [line for one in planned if one.works for line in check(road, one.step)]
    problems += list(_not_done(road, planned))
    problems += [line for step in road.steps if step.stage == "eval" for line in check_gate(road, step)]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return Pipeline(road, planned)


def plan(road: Road, start: str | None = None, only: str | None = None) -> list[Planned]:
    """What happens to each step: run where it, its inputs or its outputs changed or a step before it runs, else skipped."""
    chosen = road.chosen(start or only or "", "--from" if start else "--only") if start or only else []
    first = min((road.steps.index(step) for step in chosen), default=0)
    planned: list[Planned] = []
    for place, step in enumerate(road.steps):
        left_out = (only and step not in chosen) or (start and place < first)
        if left_out:
            planned.append(Planned(step, "leave", ""))
        else:
            planned.append(_planned(road, step, planned, asked=step in chosen))
    return planned


def _planned(road: Road, step: Step, before: list[Planned], asked: bool) -> Planned:
    doing = {one.step: one for one in before if one.works}
    record = road.ledger.read(step.name)
    if moved := [one.label for one in road.needs(step) if one in doing]:
        return Planned(step, "resume" if _goes_on(road, step, record) else "run", f"after {', '.join(moved)}")
    if _goes_on(road, step, record):
        return Planned(step, "resume", "is being done now" if road.ledger.live else "was stopped")
    why = stale(road, step, record)
    if why or asked:
        return Planned(step, "run", why or "asked for")
    return Planned(step, "skip", "nothing changed")


def _goes_on(road: Road, step: Step, record: Record | None) -> bool:
    if record is None or record.status != RUNNING:
        return False
    return record.key == key_of(road.settings(step), road.inputs(step))


def stale(road: Road, step: Step, record: Record | None) -> str:
    """Why a step must be done (again); empty where what it left still holds."""
    if record is None:
        return "not done yet"
    settings, inputs = road.settings(step), road.inputs(step)
    if record.key != key_of(settings, inputs):
        return differences(record, settings, inputs)
    return "was stopped" if record.status != DONE else road.ledger.unchanged(record)


def check(road: Road, step: Step) -> Iterator[str]:
    """What is missing for a step, a line each: where it is asked for, what is missing, what makes it."""
    where = road.project.line(step.stage)
    for problem in road.table[step.stage].check(road, step):
        yield f"{where}: {step.label}: {problem}"


def _not_done(road: Road, planned: Sequence[Planned]) -> Iterator[str]:
    """Steps that are not done though others that run take their results."""
    left = {one.step for one in planned if one.action == "leave"}
    for one in planned:
        for need in road.needs(one.step) if one.works else []:
            record = road.ledger.read(need.name)
            if need in left and (record is None or record.status != DONE or road.ledger.unchanged(record)):
                state = "is not done" if record is None or record.status != DONE else road.ledger.unchanged(record)
                yield f"{one.step.label} needs {need.label}, which {state} ({road.command('--only', need.label)})"


def run(pipeline: Pipeline, shown: Shown) -> list[Record]:
    """Does what is planned, a step after the other, and returns the records of all steps.

    ``shown`` opens what shows a step. All events are also written to ``.forge/events.jsonl``.

    Raises:
        RunError: another pipeline works on the project.
        RunFailed, ConfigError, ...: as the step's own command; what was done before stays, the same command goes on.
        Interrupted: stopped by the user.
    """
    road = pipeline.road
    states = {one.step.label: "waits" if one.works else "skipped" for one in pipeline.planned}
    with road.ledger.held():
        log_file = road.project.root / FOLDER / EVENTS
        if pipeline.work:
            log_file.unlink(missing_ok=True)
        with EventLog(log_file) as log:
            try:
                for one in pipeline.work:
                    _step(road, one.step, states, log, shown, fresh=one.why == "asked for")
            finally:
                road.ledger.keep_hashes()
    return [record for step in road.steps if (record := road.ledger.read(step.name))]


def _step(road: Road, step: Step, states: dict[str, str], log: EventLog, shown: Shown, fresh: bool) -> None:
    """One step, from its record to its record; one whose inputs turned out as they were is not done again."""
    record = road.ledger.read(step.name)
    if record and not fresh and not stale(road, step, record):
        states[step.label] = "skipped"
        return
    states[step.label] = "runs"
    began = time.time()
    with shown(step, dict(states)) as (emit, control):
        told = fan_out([log, _without_next(emit)])
        told(StageStarted(stage=step.label, states=dict(states)))
        status, gained = "failed", ""
        try:
            record = _begin(road, step, record, began)
            _reset_memory()
            made = road.table[step.stage].run(road, step, record, told, control)
            _end(road, step, record, made, began)
            gained = summed_up(step, made.result)
            status = states[step.label] = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise Interrupted(f"stopped in {step.label}", fix=again(road)) from None
        except Interrupted as stop:
            status = "interrupted"
            stop.fix = again(road)
            raise
        except MlxforgeError as error:
            error.what = f"{step.label}: {error.what}"
            raise
        finally:
            if status != "done":
                states[step.label] = status
                _sat(road, step, began)
            told(StageEnded(stage=step.label, status=status, seconds=round(time.time() - began, 2), gained=gained))
    _let_go()


def _without_next(emit: Emit) -> Emit:
    """The events as they are, but a run that ends does not say what to run next: the next stage does it."""
    return lambda event: emit(msgspec.structs.replace(event, next_steps=[]) if isinstance(event, RunEnded) else event)


def _sat(road: Road, step: Step, began: float) -> None:
    """Adds the time of a sitting that ended early to the record."""
    if (record := road.ledger.read(step.name)) and record.status == RUNNING:
        road.ledger.write(step.name, msgspec.structs.replace(record, seconds=record.seconds + time.time() - began))


def _begin(road: Road, step: Step, record: Record | None, began: float) -> Record:
    """The record of a step that runs now: the one that was stopped, or a new one."""
    settings, inputs = road.settings(step), road.inputs(step)
    missing = [name for name, known in inputs.items() if known == MISSING]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not there", where=road.project.line(step.stage), fix=again(road))
    key = key_of(settings, inputs)
    if record is None or record.key != key or record.status != RUNNING:
        run = free_run(road, step) if step.stage in TRAINING else ""
        record = Record(
            stage=step.stage, variant=step.variant, key=key, settings=settings, inputs=inputs, run=run, started=began,
            result=record.result if record else {},
        )  # fmt: skip
        road.ledger.write(step.name, record)
    return record


def _end(road: Road, step: Step, record: Record, made: Made, began: float) -> None:
    outputs = {road.ledger.shown(path): road.ledger.hash(path) for path in made.files}
    record = msgspec.structs.replace(record, outputs=outputs, result=made.result, peak_memory=_peak_memory())
    # What is read may be written too: a knowledge base has the jobs of synth in it, but its texts stay.
    road.ledger.write(step.name, finished(record, began))


def again(road: Road) -> str:
    """The command that goes on."""
    return f"the same command goes on: {road.command()}"


def _reset_memory() -> None:
    if mx := sys.modules.get("mlx.core"):
        mx.reset_peak_memory()


def _peak_memory() -> int:
    mx: Any = sys.modules.get("mlx.core")
    return int(mx.get_peak_memory()) if mx else 0


def _let_go() -> None:
    """Gives the memory of a step back before the next one."""
    gc.collect()
    if mx := sys.modules.get("mlx.core"):
        mx.clear_cache()
