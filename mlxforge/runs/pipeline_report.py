"""What a pipeline came to: of each stage what it gained and what it cost, and whether the result should ship."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import MlxforgeError
from mlxforge.core.files import disk_size, write_atomic
from mlxforge.evals.figures import figure, labels, main_metric, number, set_names, title
from mlxforge.evals.report import PAGE, REPORT, ROAD, load_report
from mlxforge.evals.road import Outcome, Summary
from mlxforge.evals.write import write_pages
from mlxforge.runs.pipeline import Pipeline
from mlxforge.runs.pipeline_eval import report_folder
from mlxforge.runs.pipeline_gains import gains, made_of, tokens_of
from mlxforge.runs.pipeline_order import Road, Step
from mlxforge.runs.pipeline_state import DONE, Record
from mlxforge.runs.stage_settings import TRAINING


def summarise(pipeline: Pipeline) -> Summary:
    """The outcome of all steps, from what they left; holds the report of eval to the project's gate.

    It is also written as ``pipeline.json`` beside that report, whose pages show it.

    Raises:
        ConfigError: a requirement that names what the report has not.
    """
    road = pipeline.road
    worked = {one.step for one in pipeline.work}
    stages = [outcome(road, step, step in worked) for step in road.steps]
    report = report_folder(road)
    shown = report / PAGE if (report / REPORT).is_file() else None
    gate = hold(road) if shown else None
    summary = Summary(
        project=road.project.name,
        stages=stages,
        seconds=round(sum(one.seconds for one in stages), 1),
        tokens=sum(one.tokens for one in stages),
        peak_memory=max((one.peak_memory for one in stages), default=0),
        disk=sum(one.disk for one in stages),
        cost=round(sum(one.cost for one in stages), 4),
        report=str(shown) if shown else None,
        ships=gate["passed"] if gate else None,
        gate=gate,
    )
    if shown:
        plain = msgspec.json.decode(msgspec.json.encode(summary))
        write_atomic(report / ROAD, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
        write_pages(report)
    return summary


def hold(road: Road) -> dict[str, Any] | None:
    """The verdict of the project's gate on its report; None where it has none."""
    from mlxforge.runs.gate import gate

    wanted = road.project.gate
    if wanted is None or not (wanted.require or wanted.no_regression):
        return None
    try:
        return gate(
            report_folder(road),
            wanted.require,
            wanted.no_regression,
            against=wanted.against,
            strict=wanted.strict,
            runs_dir=road.project.runs_dir,
        )
    except MlxforgeError as error:
        error.where = road.project.line("gate.require", "gate.no_regression", "gate")
        raise


def outcome(road: Road, step: Step, done: bool) -> Outcome:
    """What one step came to."""
    record = road.ledger.read(step.name)
    if record is None or record.status != DONE:
        return Outcome(stage=step.label, status=record.status if record else "not done", done=False)
    result = record.result
    tokens = tokens_of(step.stage, result)
    return Outcome(
        stage=step.label,
        status=DONE,
        done=done,
        seconds=record.seconds,
        tokens=int(tokens or 0),
        peak_memory=int(result.get("peak_memory_bytes") or record.peak_memory),
        disk=_size(road, record),
        cost=float(result.get("cost") or 0.0),
        made="\n".join(figures(report_folder(road))) if step.stage == "eval" else made_of(step.stage, result),
        gains=list(gains(result)) if step.stage in TRAINING else [],
    )


def figures(folder: Path) -> Iterator[str]:
    """The main figure of each set of a report, model by model: ``questions exact match: base 0.000, sft 0.950``."""
    report = load_report(folder)
    for name in set_names(report):
        if metric := main_metric(report, name):
            found = {label: figure(report, label, name, metric) for label in labels(report)}
            told = ", ".join(f"{label} {number(one.value, one.unit)}" for label, one in found.items() if one)
            yield f"{name} {title(metric)}: {told}"


def _size(road: Road, record: Record) -> int:
    """Bytes of what a step left; of a run all of its folder."""
    paths = [road.project.runs_dir / record.run] if record.run else [road.project.root / name for name in record.outputs]
    return sum(disk_size(path) for path in paths if path.exists())
