"""Evaluate: several models on the same sets, side by side, into one report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, Interrupted
from mlxforge.core.events import Emit, Noted, Progress, Warned, ignore
from mlxforge.core.files import bytes_hash
from mlxforge.evals.graded import Answer, Graded, Likelihood, Timing
from mlxforge.evals.metrics import GIVES, Chosen, Column, Metric, chosen, column, compare, remarks, value
from mlxforge.evals.report import REPORT, ROWS, ModelInfo, Report, Test, Value
from mlxforge.runs.eval_kept import PEAK, VERSION, Kept
from mlxforge.runs.eval_sets import RETENTION, EvalRow, EvalSet, Spec, parse_sets, read_set, retention_text
from mlxforge.runs.subjects import WINDOW, Asked, Named, Subject, info_of, name_models, open_subject, vocabulary

ANSWERS = frozenset({"references", "answer", "commands", "json", "schema", "win", "rubric", "hit"})
CONTINUATIONS = frozenset({"choices", "pairs"})


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What decides an evaluation.

    Attributes:
        models: ``MODEL`` or ``LABEL=MODEL`` each; the first is what the others are held against.
        data: ``FILE`` or ``NAME=FILE`` each.
        metrics: names and groups of metrics; none for all that fit.
        retention: general text in the same table: a file, None for the shipped one, empty for none.
        output: folder of the report; None for one by the time under ``reports``.
        limit: rows of each set at most; of a text, passages.
        max_tokens: of an answer.
        window: tokens that a text is read in at a time.
        thinking: whether models think before they answer; None leaves it to them.
        latency_prompts: how many prompts are answered one by one with a clock.
        seed: of the bootstrap.
        fresh: ask for everything again, whatever is kept.
        format, map: how rows are read, as in training.
    """

    models: Sequence[str]
    data: Sequence[str] = ()
    metrics: Sequence[str] = ()
    retention: str | None = None
    output: Path | None = None
    runs_dir: Path = Path("runs")
    limit: int | None = None
    max_tokens: int = 256
    window: int = WINDOW
    thinking: bool | None = None
    latency_prompts: int = 8
    seed: int = 0
    fresh: bool = False
    format: str | None = None
    map: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Job:
    """An evaluation under way: what is asked of whom, and ``graded[label][set]``, a row each."""

    settings: EvalSettings
    models: list[Named]
    infos: dict[str, ModelInfo]
    sets: list[EvalSet]
    metrics: dict[str, list[Metric]]
    notes: list[str]
    emit: Emit = ignore
    graded: dict[str, dict[str, list[Graded]]] = field(default_factory=dict)
    peaks: dict[tuple[str, str], int | None] = field(default_factory=dict)
    why: dict[tuple[str, str], str] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Something the report's reader should know."""
        self.notes.append(text)
        self.emit(Noted(message=text))


def evaluate(settings: EvalSettings, emit: Emit = ignore) -> Report:
    """Evaluates all models on all sets and writes the report's folder.

    What a model gave is kept as it comes (:mod:`mlxforge.runs.eval_kept`): the same command goes on where it was stopped.

    Raises:
        ConfigError: no model, no data, labels twice, a metric that fits no set, perplexity of different tokenizers.
        DataError: bad rows.
        ModelError: a model that cannot be opened.
        Interrupted: stopped by the user; what was done is kept.
    """
    from mlxforge.evals.write import write_report

    folder = output_folder(settings.output)
    job = prepare(settings, emit)
    for named in job.models:
        _ask(job, named)
    report, rows = finish(job)
    write_report(report, rows, folder)
    return report


def output_folder(given: Path | None) -> Path:
    """Where the report goes.

    Raises:
        ConfigError: a file, or a folder that holds other things.
    """
    folder = given or Path("reports") / f"eval-{datetime.now():%Y%m%d-%H%M%S}"
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in (REPORT, ROWS)):
        raise ConfigError("holds other things than a report", where=str(folder), fix="name a new folder: -o DIR")
    if folder.exists() and not folder.is_dir():
        raise ConfigError("a file, not a folder", where=str(folder), fix="name a new folder: -o DIR")
    return folder


def prepare(settings: EvalSettings, emit: Emit = ignore) -> Job:
    """Reads all that is asked, and refuses what cannot be done, before any weight is loaded; errors as :func:`evaluate`."""
    models = name_models(settings.models, settings.runs_dir)
    sets = list(_sets(settings, emit))
    picked: Chosen = chosen(settings.metrics, {one.name: gives(one) for one in sets})
    job = Job(settings, models, {}, sets, picked.metrics, [], emit)
    for note in picked.notes:
        job.note(note)
    _check_tokenizers(job)
    job.infos = {named.label: info_of(named) for named in models}
    return job


def _sets(settings: EvalSettings, emit: Emit) -> Iterator[EvalSet]:
    if not settings.data and not settings.retention:
        fix = "name rows or text: --data FILE; a sample: --data sample:handbook/questions.test.jsonl"
        raise ConfigError("no data", where="--data", fix=fix)
    specs = parse_sets(settings.data)
    for spec in specs:
        yield read_set(spec, limit=settings.limit, formatted=settings.format, mapping=settings.map, emit=emit)
    if settings.retention != "" and RETENTION not in {spec.name for spec in specs}:
        yield read_set(Spec(RETENTION, settings.retention or retention_text()), limit=settings.limit, emit=emit)


def gives(one: EvalSet) -> set[str]:
    """What the rows of a set give that metrics may need."""
    found = set(GIVES[one.kind])
    if any(row.schema is not None for row in one.rows):
        found |= {"schema", "json"}
    if any(row.hit is not None for row in one.rows):
        found.add("hit")
    return found


def _check_tokenizers(job: Job) -> None:
    """Perplexity is a token's: between different tokenizers it says nothing.

    Raises:
        ConfigError: it was asked for by its name.
    """
    named = [name for name, metrics in job.metrics.items() if any(metric.name == "perplexity" for metric in metrics)]
    if not named or len(job.models) < 2:
        return
    first, *others = job.models
    known = vocabulary(first)
    other = next((one for one in others if not _alike(known, vocabulary(one))), None)
    if other is None:
        return
    what = f"'{first.label}' and '{other.label}' have different tokenizers: perplexity a token does not compare"
    if "perplexity" in job.settings.metrics:
        raise ConfigError(what, where="--metrics", fix="bpb does not depend on the tokenizer: --metrics bpb")
    for name in named:
        job.metrics[name] = [metric for metric in job.metrics[name] if metric.name != "perplexity"]
    job.note(f"perplexity is left out: {what}; bpb does")


def _alike(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether two vocabularies are the same, but for tokens that pad one of them."""
    return one.items() <= other.items() or other.items() <= one.items()


def _ask(job: Job, named: Named) -> None:
    """Asks one model for all that the metrics need, and lets it go."""
    settings, info = job.settings, job.infos[named.label]
    job.graded[named.label] = {}
    with open_subject(named, info, window=settings.window, thinking=settings.thinking) as subject:
        for one in job.sets:
            needs = {metric.needs for metric in job.metrics[one.name]}
            kept = Kept(_kept_name(info, settings, one.kind), settings.fresh)
            try:
                job.graded[named.label][one.name] = _grade(job, subject, one, needs, kept)
                if "model" in needs:
                    job.peaks[named.label, one.name] = _peak(subject, kept)
            except KeyboardInterrupt:
                what = f"stopped at {named.label}, {one.name}: what was answered is kept"
                raise Interrupted(what, fix="the same command goes on") from None
            finally:
                kept.close()


def _kept_name(info: ModelInfo, settings: EvalSettings, kind: str) -> str:
    """The name of what is kept: all that decides what a model gives, but for the row."""
    from importlib.metadata import version

    of_kind = str(settings.window) if kind == "text" else str((settings.max_tokens, settings.thinking))
    packages = version("mlx"), version("mlx-lm")
    return bytes_hash(str(VERSION), info.kind, info.hash, kind, of_kind, *packages)[:32]


def _peak(subject: Subject, kept: Kept) -> int | None:
    """The most memory that was held for a set, also by the process that was stopped before it was done."""
    now, before = subject.peak_memory(), kept.get(PEAK)
    if now is not None and (before is None or now > before):
        kept.add(PEAK, now)
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
    if "timing" in needs and not subject.no_chat:
        _time(job, subject, one, graded)
    return graded


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
        timing: Timing = subject.timed(row.prompt, job.settings.max_tokens)
        if number:
            graded[row.index] = replace(graded[row.index], timing=timing)
        job.emit(Progress(task=task, done=number + 1, total=len(rows) + 1, unit="prompts"))


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
        curves={},
    )
    return report, _lines(job, columns)


def _column(job: Job, label: str, one: EvalSet, metric: Metric) -> Column:
    return column(metric, job.graded[label][one.name])


def _value(job: Job, columns: Mapping[tuple[str, str, str], Column], label: str, one: EvalSet, metric: Metric) -> Value:
    """One figure; where a model cannot give it, why."""
    if metric.terms is None:
        peak = job.peaks.get((label, one.name))
        why = "" if peak is not None else "not known of this kind of model"
        return Value(value=peak, n=len(one.rows), better=metric.better, unit=metric.unit, why=why)
    why = job.why.get((label, one.name), "")
    if why:
        return Value(value=None, better=metric.better, unit=metric.unit, why=why)
    return value(columns[label, one.name, metric.name], job.settings.seed)


def _tests(job: Job, columns: Mapping[tuple[str, str, str], Column]) -> Iterator[Test]:
    """Every model against the first one and against the one before it."""
    labels = [named.label for named in job.models]
    for place, label in enumerate(labels[1:], 1):
        for against in dict.fromkeys((labels[0], labels[place - 1])):
            for one in job.sets:
                for metric in job.metrics[one.name]:
                    if metric.terms is None:
                        continue
                    pair = columns[label, one.name, metric.name], columns[against, one.name, metric.name]
                    found = compare(*pair, one.name, label, against, job.settings.seed)
                    if found is not None:
                        yield found


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
                }


def _likeliest(row: EvalRow, graded: Graded) -> str | None:
    """The answer that a model finds likeliest of those given."""
    if not graded.continuations:
        return None
    place = min(range(len(graded.continuations)), key=lambda at: graded.continuations[at].nats)
    return row.answers[place][-1].content


def _shown(settings: EvalSettings) -> dict[str, Any]:
    """The settings as plain values."""
    found = asdict(settings)
    return {
        key: str(one) if isinstance(one, Path) else list(one) if isinstance(one, tuple) else one for key, one in found.items()
    }


def _version() -> str:
    from importlib.metadata import version

    return version("mlxforge")
