"""Evaluate: several models on the same sets, side by side, into one report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

from mlxforge.core.errors import Interrupted
from mlxforge.core.events import Emit, Noted, Progress, ignore
from mlxforge.core.files import bytes_hash
from mlxforge.evals.graded import Answer, Graded, Likelihood
from mlxforge.evals.report import Report
from mlxforge.runs.eval_figures import finish, passage_gains
from mlxforge.runs.eval_job import EvalSettings, Job, output_folder, prepare
from mlxforge.runs.eval_kept import VERSION, Kept
from mlxforge.runs.eval_sets import EvalSet
from mlxforge.runs.harness import Suite, run
from mlxforge.runs.harness_sets import add
from mlxforge.runs.judging import Judge, estimate, judge_answers
from mlxforge.runs.subject import Asked, Subject
from mlxforge.runs.subjects import Named, open_subject

__all__ = ["EvalSettings", "evaluate"]

ANSWERS = frozenset({"references", "answer", "commands", "json", "schema", "win", "rubric"})
CONTINUATIONS = frozenset({"choices", "pairs"})


def evaluate(settings: EvalSettings, emit: Emit = ignore) -> Report:
    """Evaluates all models on all sets and writes the report's folder.

    What a model gave is kept as it comes (:mod:`mlxforge.runs.eval_kept`): the same command goes on where it was stopped.

    Raises:
        ConfigError: no model, no data, labels twice, a metric that fits no set, perplexity of different tokenizers.
        DataError: bad rows.
        ModelError: a model that cannot be opened.
        Interrupted: stopped by the user; what was done is kept.
        RunFailed: the judge broke off, or costs too much; the report is written with what it said until then.
    """
    from mlxforge.evals.write import write_report

    folder = output_folder(settings.output)
    job = prepare(settings, emit)
    # A judge that cannot be reached is told before anything is asked.
    judge = Judge(settings.judge, settings.prompts, settings.runs_dir) if settings.judge else None
    suite = Suite(settings.suite) if settings.suite else None
    for named in job.models:
        _ask(job, named, suite)
    for note in passage_gains(job):
        job.note(note)
    stopped = judge_answers(job, judge) if judge else None
    report, rows = finish(job)
    if suite:
        rows = chain(rows, add(report, job))
    write_report(report, rows, folder)
    if stopped is not None:
        stopped.fix = stopped.fix or f"{folder} has what it said until then; the same command asks for the rest"
        raise stopped
    return report


def plan(settings: EvalSettings, emit: Emit = ignore) -> dict[str, Any]:
    """What an evaluation would ask, asking nobody: ``models`` (labels), ``sets`` (name, kind, rows, metrics), ``tasks`` of
    another suite, ``judge`` (see :func:`mlxforge.runs.judging.estimate`, None without one); errors as :func:`evaluate`."""
    job = prepare(settings, emit)
    return {
        "models": [named.label for named in job.models],
        "sets": [
            {"name": one.name, "kind": one.kind, "rows": len(one.rows), "metrics": [m.name for m in job.metrics[one.name]]}
            for one in job.sets
        ],
        "tasks": list(settings.suite.tasks) if settings.suite else [],
        "judge": estimate(job, settings.judge, settings.prompts) if settings.judge else None,
    }


def _ask(job: Job, named: Named, suite: Suite | None = None) -> None:
    """Asks one model for all that the metrics need, and lets it go."""
    settings, info = job.settings, job.infos[named.label]
    job.graded[named.label] = {}
    try:
        with open_subject(named, info, window=settings.max_length, thinking=settings.thinking) as subject:
            for note in subject.notes:
                job.note(f"{named.label}: {note}")
            for one in job.sets:
                needs = {metric.needs for metric in job.metrics[one.name]}
                with Kept(_kept_name(subject, settings, one.kind), settings.fresh) as kept:
                    job.graded[named.label][one.name] = _grade(job, subject, one, needs, kept)
                    if "model" in needs:
                        job.peaks[named.label, one.name] = _peak(subject, kept, one)
            if suite:
                with Kept(_kept_name(subject, settings, "lm-eval"), settings.fresh) as kept:
                    job.suite[named.label] = run(job, suite, subject, kept)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at {named.label}: what it answered is kept", fix="the same command goes on") from None


def _kept_name(subject: Subject, settings: EvalSettings, kind: str) -> str:
    """The name of what is kept: all that decides what a model gives, but for the row."""
    of_kind = (settings.max_length,) if kind == "text" else (settings.max_tokens, settings.thinking)
    return bytes_hash(str(VERSION), subject.info.hash, *subject.decides, kind, str(of_kind))[:32]


def _peak(subject: Subject, kept: Kept, one: EvalSet) -> int | None:
    """The most memory that was held for a set, also by the process that was stopped before it was done; None where all of it
    was answered before and nobody looked."""
    key = f"peak {one.info.hash}"
    now, before = subject.peak_memory(), kept.get(key)
    now = now if kept.added else None
    if now is not None and (before is None or now > before):
        kept.add(key, now)
    return max((one for one in (now, before) if one is not None), default=None)


def _grade(job: Job, subject: Subject, one: EvalSet, needs: set[str], kept: Kept) -> list[Graded]:
    """What a model gives for the rows of a set."""
    graded = [Graded(references=row.references, schema=row.schema, right=row.right, hit=row.hit) for row in one.rows]
    label = subject.info.label
    if "likelihood" in needs:
        _fill(job, subject.no_likelihood, graded, _texts(one), subject.likelihoods, kept, f"{label}: {one.name}", one.name)
    if needs & CONTINUATIONS:
        refused = subject.no_chat or subject.no_likelihood
        _fill(job, refused, graded, _continued(one), subject.continuations, kept, f"{label}: {one.name}", one.name)
    if needs & ANSWERS:
        tokens = job.settings.max_tokens
        _fill(
            job, subject.no_chat, graded, _asked(one), lambda chats: subject.answers(chats, tokens), kept,
            f"{label}: {one.name}", one.name,
        )  # fmt: skip
        _warn_full(job, one, kept, label)
    if "timing" in needs and not subject.no_chat:
        _time(job, subject, one, graded)
    return graded


def _warn_full(job: Job, one: EvalSet, kept: Kept, label: str) -> None:
    """Tells of prompts that leave no room for an answer, as long passages do: their answers are empty."""
    answers = [Answer(*found) for unit in _asked(one) if (found := kept.get(unit.key))]
    full = sum(answer.finish == "length" and not answer.tokens for answer in answers)
    if full:
        fewer = " (fewer passages: --top-k)" if any(row.context for row in one.rows) else ""
        job.note(f"{label}, {one.name}: {full:,} of {len(answers):,} prompts fill the model's context{fewer}")


@dataclass(frozen=True)
class Unit:
    """What is asked at a time: ``given`` for the rows at ``places``; ``fill`` puts what comes back into their grades."""

    key: str
    given: Any
    places: tuple[int, ...]
    fill: Callable[[Graded, Any], Graded]


def _texts(one: EvalSet) -> Iterator[Unit]:
    """A document at a time, whose passages are the rows."""
    for _, found in groupby(one.rows, key=lambda row: row.document):
        rows = list(found)
        places = tuple(row.index for row in rows)
        parts = [row.text for row in rows]
        yield Unit(bytes_hash(*parts), parts, places, lambda graded, of: replace(graded, likelihood=Likelihood(*of)))


def _continued(one: EvalSet) -> Iterator[Unit]:
    for row in one.rows:
        assert row.prompt is not None
        asked = Asked(row.prompt.messages, row.answers, row.prompt.tools)
        yield Unit(row.key, asked, (row.index,), _with_continuations)


def _with_continuations(graded: Graded, found: Any) -> Graded:
    return replace(graded, continuations=tuple(Likelihood(*one) for one in found))


def _asked(one: EvalSet) -> Iterator[Unit]:
    for row in one.rows:
        yield Unit(row.key, row.prompt, (row.index,), _with_answer)


def _with_answer(graded: Graded, found: Any) -> Graded:
    answer = Answer(*found)
    return replace(graded, answer=answer.text, finish=answer.finish)


def _fill(
    job: Job,
    refused: str,
    graded: list[Graded],
    units: Iterator[Unit],
    ask: Callable[[list[Any]], Iterator[tuple[int, Any]]],
    kept: Kept,
    task: str,
    name: str,
) -> None:
    """Asks for what is not kept, keeps it as it comes, and puts all of it into the grades."""
    if refused:
        job.why[task.partition(": ")[0], name] = refused
        return
    every = list(units)
    missing = [unit for unit in every if kept.get(unit.key) is None]
    rows = sum(len(unit.places) for unit in every)
    done = rows - sum(len(unit.places) for unit in missing)
    if done:
        job.emit(Noted(message=f"{task}: {done:,} of {rows:,} rows were answered before"))
    job.emit(Progress(task=task, done=done, total=rows, unit="rows"))
    if missing:
        for place, found in ask([unit.given for unit in missing]):
            kept.add(missing[place].key, found)
            done += len(missing[place].places)
            job.emit(Progress(task=task, done=done, total=rows, unit="rows"))
    for unit in every:
        found = kept.get(unit.key)
        each = [found] if len(unit.places) == 1 and unit.fill in (_with_continuations, _with_answer) else found
        for place, of in zip(unit.places, each, strict=True):
            graded[place] = unit.fill(graded[place], of)


def _time(job: Job, subject: Subject, one: EvalSet, graded: list[Graded]) -> None:
    """Answers a few prompts one by one with a clock; the first is answered once more before, to warm up."""
    rows = one.rows[: job.settings.latency_prompts]
    task = f"{subject.info.label}: {one.name}, one by one"
    for number, row in enumerate((*rows[:1], *rows)):
        assert row.prompt is not None
        timing = subject.timed(row.prompt, job.settings.max_tokens)
        if number and timing is not None:
            graded[row.index] = replace(graded[row.index], timing=timing)
        job.emit(Progress(task=task, done=number + 1, total=len(rows) + 1, unit="prompts"))
