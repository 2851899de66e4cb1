"""The stage of a pipeline that compares the models of the others, in one report."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from mlxforge.core.errors import ConfigError, MissingExtraError, did_you_mean
from mlxforge.core.events import Control, Emit
from mlxforge.evals.report import PAGE, REPORT, RETENTION, ROWS
from mlxforge.runs.pipeline_checks import missing
from mlxforge.runs.pipeline_order import BASE, Made, Road, Step, compared
from mlxforge.runs.pipeline_state import Record
from mlxforge.runs.pipeline_train import job_of
from mlxforge.runs.stage_settings import TRAINING
from mlxforge.runs.text import expand

COMPARED = (*TRAINING, "fuse", "export")
# What a stage's model is called in a report, where that is not the stage's own name.
LABELS = {"fuse": "fused", "export": "gguf"}


def report_folder(road: Road) -> Path:
    """Where the report of a project lies."""
    return road.project.exports / "report"


def eval_makes(road: Road, _: Step) -> list[Path]:
    """The report."""
    return [report_folder(road)]


def eval_reads(road: Road, step: Step) -> list[str]:
    """The files of all sets."""
    files = [_split(spec)[1] for spec in step.get("data")]
    retention = road.project.settings.retention
    return [road.project.place(file) for file in [*files, *([retention] if retention else [])]]


def check_eval(road: Road, step: Step) -> Iterator[str]:
    """Sets and models are there, metrics have names."""
    from mlxforge.evals.metrics import GROUPS, METRICS

    if not eval_reads(road, step):
        yield "nothing to evaluate on (write eval.data: [FILE], or retention: FILE at the top)"
    yield from missing(road, eval_reads(road, step))
    known = [BASE, *(one for one in road.project.stages if one in COMPARED), *_labels(road)]
    for name in step.get("models"):
        if name not in known:
            yield f"'{name}' makes no model here ({did_you_mean(name, known)})"
    metrics = [*METRICS, *GROUPS]
    for name in step.get("metrics"):
        if name not in metrics:
            yield f"unknown metric '{name}' ({did_you_mean(name, metrics)})"
    if {"rouge1", "rouge2", "rougeL", "bleu"} & set(step.get("metrics")) and importlib.util.find_spec("rouge_score") is None:
        yield str(MissingExtraError("rouge-score", "eval", "ROUGE and BLEU"))


def check_gate(road: Road, step: Step) -> Iterator[str]:
    """Whether what is required can be read, and names models, sets and metrics that a report may have."""
    from mlxforge.evals.metrics import METRICS
    from mlxforge.evals.requirements import split_bound, split_tolerance

    gate = road.project.gate
    labels = [one.partition("=")[0] for one in models(road, step)]
    sets = [_split(spec)[0] for spec in step.get("data")] + ([RETENTION] if road.project.settings.retention else [])
    for key, texts, known, split, form in (
        ("require", gate.require if gate else [], labels, split_bound, "LABEL.METRIC>=0.6"),
        ("no_regression", gate.no_regression if gate else [], [*sets, *labels], split_tolerance, "SET.METRIC:0.02"),
    ):
        for text in texts:
            where = f"{road.project.line(f'gate.{key}')}: gate: {key}: '{text}'"
            try:
                path = split(text, where)[0] if "." in text else ""
            except ConfigError as error:
                yield str(error)
                continue
            name, metric = path.partition(".")[0], path.rpartition(".")[2]
            if "." not in path:
                yield f"{where} names no figure (write {form})"
            elif not any(path.startswith(f"{one}.") for one in known):
                yield f"{where}: the report will have no '{name}' ({did_you_mean(name, known)})"
            elif metric not in METRICS:
                yield f"{where}: unknown metric '{metric}' ({did_you_mean(metric, METRICS)})"


def run_eval(road: Road, step: Step, _: Record, emit: Emit, __: Control) -> Made:
    """Evaluates and writes the report."""
    from mlxforge.runs.evaluate import EvalSettings, evaluate

    retention, folder = road.project.settings.retention, report_folder(road)
    settings = EvalSettings(
        models=list(models(road, step)),
        data=[f"{name}={expand(road.project.place(file))}" for name, file in map(_split, step.get("data"))],
        metrics=step.get("metrics"),
        retention=expand(road.project.place(retention)) if retention else "",
        output=folder,
        runs_dir=road.project.runs_dir,
        limit=step.get("limit"),
        max_length=max_length(road, step),
        max_tokens=step.get("max_tokens"),
    )
    report = evaluate(settings, emit)
    # The pages change with what gate and pipeline find later.
    files = (folder / REPORT, folder / ROWS)
    result = {"report": str(folder), "page": str(folder / PAGE), "models": [model.label for model in report.models]}
    return Made(result, files)


def max_length(road: Road, step: Step) -> int:
    """Tokens that a text is read in at a time: as the compared runs read theirs, so that a report repeats their figures."""
    from mlxforge.runs.subject import WINDOW

    trained = (job_of(road, one).max_length for one in compared_steps(road, step) if one.stage in TRAINING)
    return step.get("max_length") or min(trained, default=WINDOW)


def models(road: Road, step: Step) -> Iterator[str]:
    """``LABEL=MODEL`` of all that is compared, the base first."""
    if not step.get("models") or BASE in step.get("models"):
        yield f"{BASE}={road.project.model(road.project.settings.model)}"
    for one in compared_steps(road, step):
        label = one.suffixed(LABELS.get(one.stage, one.stage))
        if one.stage in TRAINING:
            yield f"{label}={road.result_model(one)}"
        else:
            yield from _files(road, one, label)


def compared_steps(road: Road, step: Step) -> list[Step]:
    """The steps whose models are compared, in order."""
    names = compared(road, step)
    return [one for one in road.steps if one.stage in names or one.label in names]


def _files(road: Road, step: Step, label: str) -> Iterator[str]:
    made = road.table[step.stage].makes(road, step)
    for path in made:
        more = f"-{path.stem.rpartition('.')[2]}" if len(made) > 1 else ""
        yield f"{label}{more}={path}"


def _labels(road: Road) -> list[str]:
    return [step.label for step in road.steps if step.stage in COMPARED]


def _split(spec: str) -> tuple[str, str]:
    """``NAME=FILE`` or ``FILE`` as both; the name is else the file's stem."""
    name, equals, file = spec.partition("=")
    if equals and "/" not in name:
        return name, file
    return Path(spec.partition("@")[0]).name.partition(".")[0], spec
