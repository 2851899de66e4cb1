"""What a step of a pipeline is expected to take, before anything runs: tokens, steps, time, memory, disk, cost."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import MlxforgeError
from mlxforge.core.events import Emit, ignore
from mlxforge.core.files import free_space
from mlxforge.core.settings import TrainSettings
from mlxforge.evals.road import Forecast
from mlxforge.runs.pipeline import Pipeline
from mlxforge.runs.pipeline_order import Road, Step
from mlxforge.runs.pipeline_train import job_of
from mlxforge.runs.stage_settings import TRAINING
from mlxforge.runs.text import expand

HALF = 2  # bytes of a parameter in a fused model or an f16 file
MARGIN = 64 << 20
TRIAL = 32 << 20  # bytes of documents that are read for a forecast at most


@dataclass
class Expected:
    """What is known of data that are still to be made.

    Attributes:
        trial: the knowledge base that ingest will make, and one made of the same documents for the forecast alone.
        rows: step -> rows and tokens that training will read of what it makes.
    """

    trial: tuple[Path, Path] | None = None
    rows: dict[Step, tuple[float, float]] = field(default_factory=dict)

    def there(self, road: Road, step: Step) -> bool:
        """Whether what a step makes can be read."""
        return _there(road, step) or (step.stage == "ingest" and self.trial is not None)

    def waiting(self, road: Road, step: Step) -> list[Step]:
        """The steps whose results a step reads and that cannot be read yet."""
        makers = map(road.maker, road.table[step.stage].reads(road, step))
        return list(dict.fromkeys(one for one in makers if one and not self.there(road, one)))

    def stand_in(self, spec: str) -> str:
        """What is read instead."""
        return str(self.trial[1]) if self.trial and Path(spec) == self.trial[0] else spec


def forecasts(pipeline: Pipeline, emit: Emit = ignore) -> dict[str, Forecast]:
    """Step -> forecast of all that is to be done. Data is read and tokenised for it, no weights are."""
    road, expected = pipeline.road, Expected()
    with tempfile.TemporaryDirectory(prefix="mlxforge-") as folder:
        found = {}
        for one in pipeline.work:
            if one.step.stage == "ingest" and not _there(road, one.step):
                found[one.step.label] = _ingest(road, one.step, expected, Path(folder), emit)
            else:
                found[one.step.label] = forecast(road, one.step, expected, emit)
        return found


def forecast(road: Road, step: Step, expected: Expected, emit: Emit) -> Forecast:
    """What one step will take."""
    make = KINDS.get(step.stage) or (_training if step.stage in TRAINING else None)
    if make is None:
        return Forecast()
    waiting = expected.waiting(road, step)
    try:
        if waiting and make not in (_training, _pairs):
            return Forecast(why=f"known after {', '.join(one.label for one in waiting)}")
        return make(road, step, expected, emit)
    except MlxforgeError as error:  # what is missing was told before: this is no reason to stop
        return Forecast(why=str(error).splitlines()[0])


def _ingest(road: Road, step: Step, expected: Expected, folder: Path, emit: Emit) -> Forecast:
    """Reads the documents into a knowledge base that is thrown away, so that all after it is known."""
    from mlxforge.runs.ingest import ingest
    from mlxforge.runs.stages import ingest_settings

    documents = [expand(spec) for spec in road.table["ingest"].reads(road, step)]
    if sum(_bytes(Path(one).expanduser()) for one in documents) > TRIAL:
        return Forecast(why="many documents: known when they are read")
    trial = folder / "kb.sqlite"
    try:
        found = ingest(documents, trial, ingest_settings(road, step), emit=emit)
    except MlxforgeError as error:
        return Forecast(why=str(error).splitlines()[0])
    if not found["total"]["documents"]:
        return Forecast(why="no document could be read")
    expected.trial = (road.table["ingest"].makes(road, step)[0], trial)
    return Forecast(tokens=found["total"]["tokens"], disk=trial.stat().st_size)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _base(road: Road, step: Step) -> str:
    """The model of a step; of one whose base is not trained yet the project's own, which has the same size."""
    taken = road.taken(step)
    done = taken is None or ((record := road.ledger.read(taken.name)) is not None and record.status == "done")
    return road.model(step) if done else road.project.model(road.project.settings.model)


def _job(road: Road, step: Step, expected: Expected) -> TrainSettings:
    job = job_of(road, step)
    return msgspec.structs.replace(job, model=_base(road, step), name=None, data=[expected.stand_in(spec) for spec in job.data])


def _training(road: Road, step: Step, expected: Expected, emit: Emit) -> Forecast:
    from mlxforge.runs.plan import plan

    if waiting := expected.waiting(road, step):
        return _rough(road, step, waiting, expected, emit)
    found = plan(_job(road, step, expected), [emit])
    return Forecast(
        tokens=round(_tokens(found) * found["epochs"]),
        steps=found["steps"],
        seconds=found["seconds"],
        memory=found["memory"]["total"],
        disk=_checkpoints(step, found["memory"]["adapters"]),
    )


def _tokens(found: Mapping[str, Any]) -> float:
    """Tokens of an epoch, replay included."""
    return float(found["tokens"] + found.get("replay_tokens_per_epoch", 0))


def _checkpoints(step: Step, adapter: int) -> int:
    return 3 * adapter * int(step.get("keep") + 2)  # weights and two moments in each


def _rough(road: Road, step: Step, waiting: list[Step], expected: Expected, emit: Emit) -> Forecast:
    """Of a run whose data are still to be made: full micro-batches, as many as the rows that are expected fill."""
    from mlxforge.runs.forecast import Work, seconds, shapes_for, speed_for
    from mlxforge.runs.forecast import forecast as forecast_run
    from mlxforge.runs.plan import plan

    job = _job(road, step, expected)
    model = shapes_for(job)
    said = forecast_run(job, model=model)
    found = Forecast(
        memory=said.total,
        disk=_checkpoints(step, said.parts["adapters"]),
        rough=True,
        why=f"more known after {', '.join(one.label for one in waiting)}",
    )
    if any(one not in expected.rows for one in waiting):
        return found
    there = [spec for spec in job.data if road.maker(spec) not in waiting]
    known = _tokens(plan(msgspec.structs.replace(job, data=there), [emit])) if there else 0.0
    each = job.batch_tokens * job.accumulate
    total = (known + sum(expected.rows[one][1] for one in waiting)) * job.epochs
    steps = job.steps or max(1, math.ceil(total / each))
    tokens = min(total, steps * each) if job.steps is None else steps * min(each, total / job.epochs)
    took = seconds(job, model, Work((), tokens), speed_for(model))
    return msgspec.structs.replace(found, tokens=round(tokens), steps=steps, seconds=round(took, 1))


def _synth(road: Road, step: Step, expected: Expected, _: Emit) -> Forecast:
    from mlxforge.runs.pipeline_synth import qa_settings, reached, store_of
    from mlxforge.runs.synth import estimate

    store = store_of(road, step)
    if step.get("kind") == "commands" or store is None:
        return Forecast()
    found = estimate(Path(expected.stand_in(str(store))), qa_settings(step), reached(road, step))
    made, train = found["completion_tokens"]["expected"], 1 - step.get("valid") - step.get("test")
    expected.rows[step] = (train * found["rows"], train * made)
    return Forecast(tokens=found["prompt_tokens"] + made, cost=found["cost"]["most"] or None)


def _pairs(road: Road, step: Step, expected: Expected, emit: Emit) -> Forecast:
    """A pair has two answers about as long as the one that is known; how long drawing takes is not known."""
    from mlxforge.core.settings import SftConfig
    from mlxforge.runs.plan import plan

    waiting = expected.waiting(road, step)
    if any(one not in expected.rows for one in waiting):
        return Forecast()
    rows, tokens = (sum(expected.rows[one][place] for one in waiting) for place in (0, 1))
    specs = road.table["pairs"].reads(road, step)
    if there := [spec for spec in specs if road.maker(spec) not in waiting]:
        found = plan(SftConfig(data=there, model=_base(road, step)), [emit])
        rows, tokens = rows + found["rows"], tokens + found["tokens"]
    asked = min(rows, step.get("limit") or rows)
    pairs = asked * step.get("per_row")
    expected.rows[step] = (pairs, 2 * pairs * tokens / max(rows, 1))
    return Forecast()


def _files(road: Road, step: Step, _: Expected, __: Emit) -> Forecast:
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


KINDS: dict[str, Any] = {"synth": _synth, "pairs": _pairs, "fuse": _files, "export": _files}
