"""The training stages of a pipeline: their job from the project, a run that is begun, gone on with, or found finished."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mlxforge.core.errors import Interrupted, RunFailed
from mlxforge.core.events import Control, Emit
from mlxforge.core.files import sweep
from mlxforge.core.settings import TrainSettings
from mlxforge.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from mlxforge.runs.pipeline_checks import check_model, missing, told
from mlxforge.runs.pipeline_order import Made, Road, Step
from mlxforge.runs.pipeline_state import Record
from mlxforge.runs.record import RECORD, read_record
from mlxforge.runs.stage_settings import PREFERENCES

READ = ("data", "valid", "retention", "replay", "task", "chat_replay")
# Where the data of a stage comes from if it names none.
MAKERS = {"cpt": "ingest", "sft": "synth"} | dict.fromkeys(PREFERENCES, "pairs")


def job_of(road: Road, step: Step) -> TrainSettings:
    """The job of a training step, with the data of the stage that makes it where it names none."""
    job = road.project.job(step.stage, step.variant if step.stage == "sft" else "")
    maker = _maker(road, step)
    if maker is None:
        return job
    made = road.table[maker.stage].makes(road, maker)
    if not job.data:
        held = next((str(path) for path in made[1:2] if path.is_file()), None) if job.valid is None else job.valid
        return msgspec.structs.replace(job, data=[str(made[0])], valid=held)
    # The file of a variant stands where the file of all variants is named.
    plain = Path(road.project.place(str(maker.get("output") or "")))
    data = [str(made[0]) if maker.variant and Path(spec) == plain else spec for spec in job.data]
    return msgspec.structs.replace(job, data=data)


def _maker(road: Road, step: Step) -> Step | None:
    stage = MAKERS[step.stage]
    return next((one for one in road.steps if one.stage == stage and one.variant in (step.variant, "")), None)


def reads(road: Road, step: Step) -> list[str]:
    """All that training reads, besides the model."""
    job = job_of(road, step)
    found: list[str] = []
    for key in READ:
        value = getattr(job, key, None) or []
        found += [value] if isinstance(value, str) else value
    return [spec for spec in found if spec != "run"]


def makes(_: Road, __: Step) -> list[Path]:
    """Nothing that is named by its path: a run is taken by its stage."""
    return []


def check(road: Road, step: Step) -> Iterator[str]:
    """The data and the model are there, and the settings agree."""
    from mlxforge.runs.text import check_data
    from mlxforge.runs.train import settled

    job = job_of(road, step)
    if not job.data:
        maker = MAKERS[step.stage]
        yield f"no data (write {step.stage}.data: [FILE], or add the stage {maker})"
    else:
        yield from told(lambda: check_data(job))
    yield from missing(road, reads(road, step))
    if road.taken(step) is None:
        yield from check_model(road, step)
    if job.from_run:
        yield from told(lambda: settled(job))


def run(road: Road, step: Step, record: Record, emit: Emit, control: Control) -> Made:
    """Trains, or goes on with the run of the record, or takes it where it was finished."""
    from mlxforge.runs import train as training

    job = msgspec.structs.replace(job_of(road, step), model=road.model(step), name=record.run)
    path = road.project.runs_dir / record.run
    sweep(path.parent, name=path.name)  # killed while the folder was made
    before = read_record(path) if (path / RECORD).is_file() else {}
    if before.get("status") == "finished":
        return _made(road, step, path, before["result"])
    if before:
        ended = training.resume(record.run, str(road.project.runs_dir), [emit], control, step.stage)
    else:
        ended = training.train(job, [emit], control)
    if ended.status != "finished":
        stop = Interrupted(f"{step.label} stopped after step {ended.result['steps']:,}; the state is saved")
        stop.result = ended.result
        raise stop
    return _made(road, step, path, ended.result)


def _made(road: Road, step: Step, path: Path, result: dict[str, object]) -> Made:
    folder = path
    if step.get("pass_on") == "last":
        from mlxforge.runs.opening import resolve_base

        folder = resolve_base(f"run:{path.resolve()}@last", road.project.runs_dir).adapter or path
    files = (folder / ADAPTER_WEIGHTS, folder / ADAPTER_CONFIG)
    if not files[0].is_file():
        raise RunFailed("the run has no adapter", where=str(path), fix=road.command("--only", step.label))
    return Made(json.loads(json.dumps(result)), files)


def free_run(road: Road, step: Step) -> str:
    """A name for a new run of a step: numbered where the plain one is taken."""
    name, number = road.run_name(step), 1
    while (road.project.runs_dir / (free := name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return free
