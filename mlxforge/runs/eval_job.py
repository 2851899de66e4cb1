"""What an evaluation is asked: settings, and all that is read and refused before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import ConfigError
from mlxforge.core.events import Emit, Noted, ignore
from mlxforge.evals.graded import Graded
from mlxforge.evals.metrics import GIVES, METRICS, Chosen, Metric, asked_by, chosen
from mlxforge.evals.report import REPORT, RETENTION, ROWS, ModelInfo
from mlxforge.knowledge.asked import ProviderSettings
from mlxforge.runs.eval_sets import EvalSet, Spec, parse_sets, read_set, retention_text
from mlxforge.runs.rag import FOUND, conditions
from mlxforge.runs.subject import WINDOW
from mlxforge.runs.subjects import Named, info_of, name_models, vocabulary

OPTIONED = frozenset({"hit", "rubric", "win"})  # what only an option of its own gives


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """A judge of answers: a name of :data:`mlxforge.knowledge.providers.PROVIDERS`, how it is reached, and US dollars that it
    may cost over all runs of the same evaluation, 0 for no ceiling."""

    provider: str
    reached: ProviderSettings = field(default_factory=ProviderSettings)
    max_cost: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SuiteSettings:
    """Tasks of another suite: names, YAML files or folders of these; ``shots`` examples in a prompt, None for the task's own
    number; ``chat`` puts prompts through the chat template."""

    tasks: Sequence[str]
    suite: str = "lm-eval"
    shots: int | None = None
    chat: bool = False


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
        max_length: tokens that a text is read in at a time, as in training.
        thinking: whether models think before they answer; None leaves it to them.
        latency_prompts: how many prompts are answered one by one with a clock.
        seed: of the bootstrap.
        fresh: ask for everything again, whatever is kept.
        format, map: how rows are read, as in training.
        rag: a knowledge base; questions are asked with ``top_k`` of its passages too, see :mod:`mlxforge.runs.rag`.
        judge: who judges the answers, see :mod:`mlxforge.runs.judging`.
        suite: tasks of lm-evaluation-harness in the same report, see :mod:`mlxforge.runs.harness`.
        prompts: a folder of prompts to use in place of the shipped ones.
    """

    models: Sequence[str]
    data: Sequence[str] = ()
    metrics: Sequence[str] = ()
    retention: str | None = None
    output: Path | None = None
    runs_dir: Path = Path("runs")
    limit: int | None = None
    max_tokens: int = 256
    max_length: int = WINDOW
    thinking: bool | None = None
    latency_prompts: int = 8
    seed: int = 0
    fresh: bool = False
    format: str | None = None
    map: Mapping[str, str] = field(default_factory=dict)
    rag: Path | None = None
    top_k: int = 3
    judge: JudgeSettings | None = None
    suite: SuiteSettings | None = None
    prompts: Path | None = None

    def __post_init__(self) -> None:
        """What Python code may write shorter: one text for a list of them, a path as text.

        Raises:
            ConfigError: a count below 1.
        """
        for name in ("models", "data", "metrics"):
            if isinstance(one := getattr(self, name), str):
                object.__setattr__(self, name, (one,))
        for name in ("output", "runs_dir", "rag", "prompts"):
            if isinstance(path := getattr(self, name), str):
                object.__setattr__(self, name, Path(path))
        for name in ("limit", "max_tokens", "max_length", "latency_prompts", "top_k"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ConfigError(f"{count} is below 1", where=name)


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
    judged: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)  # label, set, row -> what a judge said
    suite: dict[str, dict[str, Any]] = field(default_factory=dict)  # label -> task -> what came of it

    def note(self, text: str) -> None:
        """Something the report's reader should know."""
        self.notes.append(text)
        self.emit(Noted(message=text))


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
    load_blas()  # before anything imports MLX
    models = name_models(settings.models, settings.runs_dir)
    if settings.suite and (gguf := next((named for named in models if named.file is not None), None)):
        raise ConfigError("lm-eval runs models in MLX, not GGUF files", where=gguf.name, fix="leave it out, or the suite")
    sets, notes = list(_sets(settings, emit)), list[str]()
    if settings.rag:
        sets = list(conditions(sets, settings.rag, top_k=settings.top_k, prompts=settings.prompts, notes=notes, emit=emit))
    given = {one.name: gives(one) | _judgeable(settings, one) for one in sets}
    if settings.judge and not any("rubric" in found for found in given.values()):
        raise ConfigError("no set has answers to judge", where="--judge", fix="give conversations: --data FILE")
    picked: Chosen = chosen(settings.metrics, given)
    measured = {name: _with_optioned(metrics, given[name]) for name, metrics in picked.metrics.items()}
    if (asked := {name: found for name, found in given.items() if name != RETENTION}) and not any(map(measured.get, asked)):
        chosen(settings.metrics, asked)  # general text alone has what was asked for: told as if it were not there
    if "likelihood" in given.get(RETENTION, ()) and METRICS["bpb"] not in measured[RETENTION]:
        # What a stage cost is always told, whatever else is asked for.
        measured[RETENTION] = [METRICS["bpb"], *measured[RETENTION]]
    job = Job(settings, models, {}, [one for one in sets if measured[one.name]], measured, notes, emit)
    for note in picked.notes:
        job.note(note)
    for one in sets:
        if not measured[one.name]:
            job.note(f"{one.name}: none of the metrics fits {one.kind} rows, so it is left out")
    _check_tokenizers(job)
    job.infos = {named.label: info_of(named) for named in models}
    return job


def _judgeable(settings: EvalSettings, one: EvalSet) -> set[str]:
    """What a judge gives for a set."""
    if settings.judge is None or one.kind != "chat":
        return set()
    return {"rubric", "win"} if len(settings.models) > 1 else {"rubric"}


def _with_optioned(metrics: Sequence[Metric], gives: set[str]) -> list[Metric]:
    """With the metrics that --rag and --judge were given for, whatever else is asked for."""
    return [metric for metric in METRICS.values() if metric in metrics or metric.needs in gives & OPTIONED]


def _sets(settings: EvalSettings, emit: Emit) -> Iterator[EvalSet]:
    if not settings.data and not settings.retention and not settings.suite:
        fix = "name rows or text: --data FILE; a sample: --data sample:handbook/questions.test.jsonl"
        raise ConfigError("no data", where="--data", fix=fix)
    specs = parse_sets(settings.data)
    for spec in specs:
        yield read_set(spec, limit=settings.limit, formatted=settings.format, mapping=settings.map, emit=emit)
    if settings.retention != "" and RETENTION not in {spec.name for spec in specs}:
        yield read_set(Spec(RETENTION, settings.retention or retention_text()), limit=settings.limit, emit=emit)


def gives(one: EvalSet) -> set[str]:
    """What the rows of a set give that metrics may need."""
    found = set(GIVES[one.kind]) | asked_by(text for row in one.rows for text in row.references)
    if any(row.schema is not None for row in one.rows):
        found |= {"schema", "json"}
    if one.name.endswith(FOUND):
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
