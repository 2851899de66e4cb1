"""From what models gave for rows to the report: figures, tests, what passages are worth, the lines of its rows, and the
curves of training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlxforge.core.events import Warned
from mlxforge.evals.figures import MAIN, chance, number
from mlxforge.evals.graded import Graded
from mlxforge.evals.metrics import METRICS, Column, Metric, column, compare, remarks, value
from mlxforge.evals.report import Report, Test, Value
from mlxforge.runs.cards import losses
from mlxforge.runs.eval_job import EvalSettings, Job
from mlxforge.runs.eval_sets import EvalRow, EvalSet
from mlxforge.runs.rag import FOUND, GOLD
from mlxforge.runs.record import EVENTS
from mlxforge.runs.subjects import Named

POINTS = 400  # of a training curve


def finish(job: Job) -> tuple[Report, Iterator[dict[str, Any]]]:
    """The report of what was asked, and the lines of its rows."""
    columns = {
        (named.label, one.name, metric.name): _column(job, named.label, one, metric)
        for named in job.models
        for one in job.sets
        for metric in job.metrics[one.name]
        if metric.terms is not None
    }
    for label, by_set in job.graded.items():
        for name, graded in by_set.items():
            for remark in remarks(graded):
                job.notes.append(f"{label}, {name}: {remark}")
                job.emit(Warned(message=f"{label}, {name}: {remark}"))
    report = Report(
        mlxforge=_version(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=_shown(job.settings),
        models=[job.infos[named.label] for named in job.models],
        sets=[one.info for one in job.sets],
        results={
            named.label: {
                one.name: {m.name: _value(job, columns, named.label, one, m) for m in job.metrics[one.name]} for one in job.sets
            }
            for named in job.models
        },
        tests=list(_tests(job, columns)),
        notes=job.notes,
        curves=curves(job.models),
    )
    return report, _lines(job, columns)


def passage_gains(job: Job) -> Iterator[str]:
    """What passages are worth to each model: the main figure of a set closed book, with found ones and with its own one, in
    words, and p of the paired test against closed book where the rows are the same."""
    names = {one.name: one for one in job.sets}
    for closed, found, gold in ((name, name + FOUND, name + GOLD) for name in names if name + FOUND in names):
        metric = next((METRICS[name] for name in MAIN if METRICS[name] in job.metrics[closed]), None)
        for label, graded in job.graded.items() if metric else ():
            assert metric is not None
            opened = [
                _gain(job, metric, graded, closed, at, how) for at, how in ((found, "found"), (gold, "gold")) if at in names
            ]
            before = value(column(metric, graded[closed])).value
            if before is not None:
                yield f"{label}, {closed}: {metric.name.replace('_', ' ')} {number(before)} closed book, {', '.join(opened)}"


def _gain(job: Job, metric: Metric, graded: Mapping[str, Sequence[Graded]], closed: str, name: str, how: str) -> str:
    one, other = column(metric, graded[name]), column(metric, graded[closed])
    test = compare(one, other, name, "", "", job.settings.seed) if one.total == other.total else None
    told = f" ({chance(test.p)})" if test else ""
    words = {"found": "with passages found", "gold": "with its own passage"}
    return f"{number(value(one).value)} {words[how]}{told}"


def curves(models: Sequence[Named]) -> dict[str, list[dict[str, Any]]]:
    """The training of each model that is a run, as pages draw it: points of ``step`` with ``loss`` or ``valid``."""
    found = {}
    for named in models:
        if named.base and named.base.run and (named.base.run / EVENTS).is_file():
            trained, valid = losses(named.base.run)
            points = [{"step": step, "loss": loss} for step, loss in thinned(trained)]
            points += [{"step": step, "valid": loss} for step, loss in valid]
            if points:
                found[named.label] = sorted(points, key=lambda point: point["step"])
    return found


def thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most POINTS of them, evenly."""
    step = max(1, math.ceil(len(points) / POINTS))
    return points[::step]


def _column(job: Job, label: str, one: EvalSet, metric: Metric) -> Column:
    return column(metric, job.graded[label][one.name])


def _value(job: Job, columns: Mapping[tuple[str, str, str], Column], label: str, one: EvalSet, metric: Metric) -> Value:
    """One figure; where a model cannot give it, why."""
    if metric.terms is None:
        peak = job.peaks.get((label, one.name))
        gguf = job.infos[label].kind == "gguf"
        why = (
            "" if peak is not None else "not measured of llama.cpp" if gguf else "all was answered before: --fresh measures it"
        )
        return Value(value=peak, n=len(one.rows), better=metric.better, unit=metric.unit, why=why)
    why = job.why.get((label, one.name), "")
    if why:
        return Value(value=None, better=metric.better, unit=metric.unit, why=why)
    return value(columns[label, one.name, metric.name], job.settings.seed)


def _tests(job: Job, columns: Mapping[tuple[str, str, str], Column]) -> Iterator[Test]:
    """Every model against the first one and against the one before it."""
    for label, against in pairs([named.label for named in job.models]):
        for one in job.sets:
            for metric in job.metrics[one.name]:
                if metric.terms is None:
                    continue
                pair = columns[label, one.name, metric.name], columns[against, one.name, metric.name]
                found = compare(*pair, one.name, label, against, job.settings.seed)
                if found is not None:
                    yield found


def pairs(labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every model with the first one and with the one before it."""
    for place, label in enumerate(labels[1:], 1):
        for against in dict.fromkeys((labels[0], labels[place - 1])):
            yield label, against


def _lines(job: Job, columns: Mapping[tuple[str, str, str], Column]) -> Iterator[dict[str, Any]]:
    """The lines of ``rows.jsonl``."""
    for named in job.models:
        for one in job.sets:
            scores = {
                metric.name: columns[named.label, one.name, metric.name].scores()
                for metric in job.metrics[one.name]
                if metric.terms is not None
            }
            for row, graded in zip(one.rows, job.graded[named.label][one.name], strict=True):
                given = {name: found[row.index] for name, found in scores.items() if found[row.index] is not None}
                yield {
                    "set": one.name,
                    "row": row.index,
                    "model": named.label,
                    "prompt": row.shown_prompt,
                    "reference": row.shown_reference,
                    "answer": graded.answer if graded.answer is not None else _likeliest(row, graded),
                    "finish": graded.finish,
                    "scores": given,
                    "context": list(row.context) or None,
                    "source": row.source,
                    **({"judge": said} if (said := job.judged.get((named.label, one.name, row.index))) else {}),
                }


def _likeliest(row: EvalRow, graded: Graded) -> str | None:
    """The answer that a model finds likeliest of those given."""
    if not graded.continuations:
        return None
    place = min(range(len(graded.continuations)), key=lambda at: graded.continuations[at].nats)
    return row.answers[place][-1].content


def _shown(settings: EvalSettings) -> dict[str, Any]:
    """The settings as plain values."""
    judge = settings.judge
    found = asdict(replace(settings, judge=None)) | {"judge": judge and f"{judge.provider} {judge.reached.model}".rstrip()}
    return {
        key: str(one) if isinstance(one, Path) else list(one) if isinstance(one, tuple) else one for key, one in found.items()
    }


def _version() -> str:
    from importlib.metadata import version

    return version("mlxforge")
