"""What a step of a pipeline is expected to take, before anything runs: tokens, steps, time, memory, disk, cost."""

from __future__ import annotations

from typing import Any

import msgspec

from mlxforge.core.errors import MlxforgeError
from mlxforge.core.events import Emit, ignore
from mlxforge.core.files import free_space
from mlxforge.evals.road import Forecast
from mlxforge.runs.pipeline import Pipeline, Planned
from mlxforge.runs.pipeline_order import Road, Step
from mlxforge.runs.pipeline_train import job_of
from mlxforge.runs.project import TRAINING
from mlxforge.runs.text import expand

HALF = 2  # bytes of a parameter in a fused model or an f16 file
MARGIN = 64 << 20


def forecasts(pipeline: Pipeline, emit: Emit = ignore) -> dict[str, Forecast]:
    """Step -> forecast of all that is to be done. Data is read and tokenised for it, no weights are."""
    return {one.step.label: forecast(pipeline.road, one, emit) for one in pipeline.work}


def forecast(road: Road, planned: Planned, emit: Emit) -> Forecast:
    """What one step will take."""
    step = planned.step
    make = KINDS.get(step.stage) or (_training if step.stage in TRAINING else None)
    if make is None:
        return Forecast()
    makers = map(road.maker, road.table[step.stage].reads(road, step))
    waiting = list(dict.fromkeys(one for one in makers if one and not _there(road, one)))
    if waiting and not (step.stage == "cpt" and [one.stage for one in waiting] == ["ingest"]):
        return Forecast(why=f"known after {', '.join(one.label for one in waiting)}")
    try:
        return make(road, step, emit)
    except MlxforgeError as error:  # what is missing was told before: this is no reason to stop
        return Forecast(why=str(error).splitlines()[0])


def _training(road: Road, step: Step, emit: Emit) -> Forecast:
    """Of a run whose base is not trained yet the project's own: it has the same size."""
    from mlxforge.runs.plan import plan

    taken = road.taken(step)
    done = taken is None or ((record := road.ledger.read(taken.name)) is not None and record.status == "done")
    model = road.model(step) if done else road.project.model(road.project.settings.model)
    job, why = job_of(road, step), ""
    ingest = next((one for one in map(road.maker, job.data) if one and one.stage == "ingest" and not _there(road, one)), None)
    if ingest is not None:  # what will be in the knowledge base, about: the same documents, read as text
        job = msgspec.structs.replace(job, data=[expand(spec) for spec in road.table["ingest"].reads(road, ingest)])
        why = "by the documents' plain text"
    found = plan(msgspec.structs.replace(job, model=model, name=None), [emit])
    adapter = int(found["memory"]["adapters"])
    kept = 3 * adapter * (step.get("keep") + 2)  # weights and two moments in each checkpoint
    return Forecast(
        tokens=round(found["tokens"] * found["epochs"]),
        steps=found["steps"],
        seconds=found["seconds"],
        memory=found["memory"]["total"],
        disk=kept,
        why=why,
    )


def _synth(road: Road, step: Step, _: Emit) -> Forecast:
    from mlxforge.runs.pipeline_synth import qa_settings, reached, store_of
    from mlxforge.runs.synth import estimate

    store = store_of(road, step)
    if step.get("kind") == "commands" or store is None:
        return Forecast()
    found = estimate(store, qa_settings(step), reached(road, step))
    return Forecast(tokens=found["prompt_tokens"] + found["completion_tokens"]["expected"], cost=found["cost"]["most"] or None)


def _files(road: Road, step: Step, _: Emit) -> Forecast:
    parameters = _parameters(road)
    if parameters is None:
        return Forecast(why="known once the base is downloaded")
    factor = 1.0 if step.stage == "fuse" else sum(_bits(quant) for quant in step.get("quants")) / 16
    return Forecast(disk=int(parameters * HALF * factor))


def _bits(quant: str) -> float:
    """Bits of a weight, about."""
    digits = next((letter for letter in quant if letter.isdigit()), "8")
    return 16.0 if "16" in quant else int(digits) + 0.6


def _parameters(road: Road) -> int | None:
    """Parameters of the base by its files, where it lies here."""
    from mlxforge.models.check import weight_files
    from mlxforge.models.hub import is_folder, resolve_model

    model = road.project.model(road.project.settings.model)
    if model != "tiny" and not is_folder(model):
        return None
    return sum(file.stat().st_size for file in weight_files(resolve_model(model))) // HALF


def _there(road: Road, step: Step) -> bool:
    """Whether what a step makes is there, and will not be made anew with other settings."""
    return all(path.exists() for path in road.table[step.stage].makes(road, step)[:1])


def check_disk(pipeline: Pipeline, found: dict[str, Forecast]) -> None:
    """Raises MlxforgeError where the disk has less room than all steps together are expected to take."""
    needed = sum(one.disk or 0 for one in found.values())
    root = pipeline.project.root / "x"
    if needed and (free := free_space(root)) < needed + MARGIN:
        what = f"about {needed / 1e6:,.0f} MB will be written, {free / 1e6:,.0f} MB are free"
        raise MlxforgeError(
            what, where=str(pipeline.project.root), fix="free space, or set runs_dir and exports to another disk"
        )


KINDS: dict[str, Any] = {"synth": _synth, "fuse": _files, "export": _files}
