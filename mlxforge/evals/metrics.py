"""The table of metrics: what each is of, which way is good, what a row gives for it and the figure of many rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mlxforge.core.errors import ConfigError, DataError, MissingExtraError, did_you_mean
from mlxforge.evals import answers, calibration, commands, judged, text
from mlxforge.evals.answers import Terms
from mlxforge.evals.estimators import exp_ratio, mean, quantile, ratio, share
from mlxforge.evals.graded import Graded
from mlxforge.evals.report import Better, Test, Value

if TYPE_CHECKING:
    from mlxforge.evals.estimators import Array, Figure

# Package to import -> package to install.
PACKAGES = {"rouge_score": "rouge-score", "sacrebleu": "sacrebleu", "jsonschema": "jsonschema"}


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        needs: what a set must give: a key of :data:`NEEDS`.
        terms: the numbers of a row that the figure is made of, or None where the row has nothing of it; a metric without it
            is not of rows, and its value comes from elsewhere.
        figure: from the terms of a draw of rows to its figure.
        rows: scores to show for single rows, where they are not the figure of that row alone.
        unasked: what more a set must give for the metric to be taken when nobody asked for it.
        package: must be importable (extra ``eval``).
    """

    name: str
    group: str
    needs: str
    better: Better
    help: str
    terms: Callable[[Graded], Terms] | None = None
    figure: Figure = share
    unit: str = ""
    rows: Callable[[Array], list[float]] | None = None
    unasked: str = ""
    package: str = ""


# What a metric may need -> in words.
NEEDS = {
    "likelihood": "text",
    "references": "answers to compare with",
    "answer": "answers",
    "choices": "choices",
    "pairs": "chosen and rejected answers",
    "commands": "answers of `mlxforge synth commands`",
    "schema": "rows with a JSON schema",
    "json": "answers in JSON",
    "phrases": "answers of four words",
    "timing": "prompts",
    "hit": "passages (--rag)",
    "win": "a judge (--judge)",
    "rubric": "a judge (--judge)",
    "model": "a model",
}
# Kind of a set -> what its rows give by themselves.
GIVES: dict[str, frozenset[str]] = {
    "text": frozenset({"likelihood", "model"}),
    "chat": frozenset({"references", "answer", "timing", "model"}),
    "choices": frozenset({"choices", "model"}),
    "pairs": frozenset({"pairs", "model"}),
    "commands": frozenset({"commands", "json", "answer", "timing", "model"}),
}


def asked_by(references: Iterable[str]) -> set[str]:
    """What references give beyond the kind of their set: ``json``, and ``phrases``, without which BLEU is 0 for any answer."""
    texts = list(references)
    json = any(map(commands.is_json, texts))
    phrases = any(len(text.split()) >= answers.GRAM for text in texts)
    return {name for name, given in (("json", json), ("phrases", phrases)) if given}


def _seconds(first: bool) -> Callable[[Graded], Terms]:
    return lambda row: row.timing and ((row.timing.first_s if first else row.timing.total_s),)


def _speed(row: Graded) -> Terms:
    """Tokens behind the first and the seconds they took: what the prompt took is in ``ttft``."""
    one = row.timing
    return None if one is None or one.tokens < 2 else (one.tokens - 1, one.total_s - one.first_s)


def _pair(row: Graded) -> Terms:
    return text.choice(text.whole)(row) if len(row.continuations) == 2 else None


def _given(name: str) -> Callable[[Graded], Terms]:
    return lambda row: None if getattr(row, name) is None else (float(getattr(row, name)),)


def _command(name: str, about: str, same: Callable[[Any, Any], bool]) -> Metric:
    return Metric(name, "commands", "commands", "higher", about, commands.match(same))


def _shares(name: str, *actions: Any) -> list[Metric]:
    told = " or ".join(f"'{action}'" for action in actions)
    about = f"share of answers whose confidence calls for {told}", f"share of these ({told}) that are exactly right"
    return [
        Metric(f"{name}_rate", "calibration", "commands", "", about[0], calibration.rate(*actions)),
        Metric(f"{name}_accuracy", "calibration", "commands", "higher", about[1], calibration.accuracy(*actions)),
    ]


def _answer(name: str, about: str, terms: Callable[[Graded], Terms], package: str = "", **more: Any) -> Metric:
    return Metric(name, "answers", "references", "higher", about, terms, package=package, **more)


def _time(name: str, about: str, first: bool, share: float) -> Metric:
    return Metric(name, "latency", "timing", "lower", about, _seconds(first), quantile(share), "s")


_TABLE = [
    Metric("perplexity", "text", "likelihood", "lower", "exp(nats a token)", text.per_token, exp_ratio),
    Metric("bpb", "text", "likelihood", "lower", "bits for each byte of text", text.per_byte, ratio),
    _answer("exact_match", "the same as a reference after SQuAD's normalisation", answers.best(answers.exact)),
    _answer("f1", "F1 of the words shared with a reference (SQuAD)", answers.best(answers.f1)),
    _answer("rouge1", "ROUGE-1, F-measure", answers.rouge("rouge1"), "rouge_score"),
    _answer("rouge2", "ROUGE-2, F-measure", answers.rouge("rouge2"), "rouge_score"),
    _answer("rougeL", "ROUGE-L, F-measure", answers.rouge("rougeL"), "rouge_score"),
    _answer(
        "bleu", "corpus BLEU, 0 to 100", answers.bleu_terms, "sacrebleu",
        figure=answers.bleu, unit="of 100", rows=answers.bleu_row, unasked="phrases",
    ),
    Metric("stop_rate", "answers", "answer", "higher", "share of answers that end by themselves", answers.stopped),
    Metric("repetition", "answers", "answer", "lower", "share of 4-grams that stood in the answer before", answers.repetition),
    Metric("choice_accuracy", "choices", "choices", "higher", "the right choice is the likeliest", text.choice(text.whole)),
    Metric("choice_accuracy_norm", "choices", "choices", "higher", "the same a byte", text.choice(text.by_byte)),
    Metric("preference_accuracy", "pairs", "pairs", "higher", "chosen is likelier than rejected; a tie is half", _pair),
    Metric("preference_margin", "pairs", "pairs", "higher", "nats from rejected to chosen", text.margin, mean, "nats"),
    Metric("json_valid", "commands", "answer", "higher", "the answer is JSON", commands.json_valid, unasked="json"),
    Metric(
        "schema_valid", "commands", "schema", "higher", "the answer fits the row's schema", commands.schema_valid,
        package="jsonschema",
    ),
    _command("command", "the right command", commands.same_command),
    _command("arguments", "all arguments and their values", commands.same_arguments),
    _command("flags", "all flags, in any order", commands.same_flags),
    _command("command_exact", "command, arguments and flags", commands.same_call),
    _command("action", "the right one of run, confirm, suggest, ask", commands.same_action),
    Metric(
        "ece", "calibration", "commands", "lower", "confidence against command_exact, ten bins",
        calibration.binned, calibration.ece,
    ),
    *_shares("run", "run"),
    *_shares("confirm", "confirm"),
    *_shares("suggest", "suggest"),
    *_shares("ask", "ask"),
    *_shares("clarify", "suggest", "ask"),
    _time("ttft_p50", "seconds to the first token, median", True, 0.5),
    _time("ttft_p95", "seconds to the first token, 95th percentile", True, 0.95),
    _time("latency_p50", "seconds to the last token, median", False, 0.5),
    _time("latency_p95", "seconds to the last token, 95th percentile", False, 0.95),
    Metric(
        "tokens_per_second", "latency", "timing", "higher", "tokens behind the first, one prompt at a time",
        _speed, ratio, "tokens/s",
    ),
    Metric("peak_memory", "latency", "model", "lower", "most memory held", unit="bytes"),
    Metric("retrieval_hit", "rag", "hit", "higher", "the passages hold the one asked about", _given("hit")),
    Metric("win_rate", "judge", "win", "higher", "answers the judge prefers; a tie is half", _given("win")),
    Metric("rubric", "judge", "rubric", "higher", "the judge's points, 1 to 5", _given("rubric"), mean),
    Metric("judge_agreement", "judge", "rubric", "", "4 points or more and exact match say the same", judged.agrees),
    Metric("judge_kappa", "judge", "rubric", "", "the same beyond chance (Cohen's kappa)", judged.both, judged.kappa),
]  # fmt: skip
METRICS = {metric.name: metric for metric in _TABLE}
GROUPS = {group: [m.name for m in _TABLE if m.group == group] for group in dict.fromkeys(m.group for m in _TABLE)}


@dataclass(frozen=True)
class Chosen:
    """Metrics by set, in the table's order; ``notes`` tell what was left out although it fits."""

    metrics: dict[str, list[Metric]]
    notes: list[str] = field(default_factory=list)


def chosen(names: Sequence[str], sets: Mapping[str, Collection[str]]) -> Chosen:
    """The metrics of each set: those named that fit it, or without names all that fit.

    Args:
        names: of metrics and groups.
        sets: what each set gives, of :data:`NEEDS`: :data:`GIVES` of its kind, what :func:`asked_by` its references is, and
            ``schema``, ``hit``, ``win``, ``rubric`` where rows or options give them.

    Raises:
        ConfigError: an unknown name, or a metric (a group with none) that fits no set.
        MissingExtraError: the package of a metric that was named is not installed.
    """
    if not names:
        return _all(sets)
    wanted: set[str] = set()
    for name in names:
        wanted |= _named(name, sets)
    return Chosen({at: [m for m in _TABLE if m.name in wanted and m.needs in gives] for at, gives in sets.items()})


def _all(sets: Mapping[str, Collection[str]]) -> Chosen:
    fitting = {at: [m for m in _TABLE if m.needs in g and (not m.unasked or m.unasked in g)] for at, g in sets.items()}
    lacking = {m.name: m.package for metrics in fitting.values() for m in metrics if not _installed(m)}
    notes = []
    if lacking:
        packages = ", ".join(sorted({PACKAGES[package] for package in lacking.values()}))
        notes = [f"left out without {packages}: {', '.join(lacking)} (pip install 'mlxforge[eval]')"]
    return Chosen({at: [m for m in metrics if m.name not in lacking] for at, metrics in fitting.items()}, notes)


def _named(name: str, sets: Mapping[str, Collection[str]]) -> set[str]:
    known = [name] if name in METRICS else GROUPS.get(name)
    if known is None:
        raise ConfigError(f"unknown metric '{name}'", where="--metrics", fix=did_you_mean(name, [*METRICS, *GROUPS]))
    given = {need for gives in sets.values() for need in gives}
    fit = [METRICS[one] for one in known if METRICS[one].needs in given]
    if not fit:
        raise ConfigError(_unfit(name, METRICS[known[0]], sets), where="--metrics", fix=_fitting(sets))
    for metric in fit:
        if not _installed(metric):
            raise MissingExtraError(PACKAGES[metric.package], "eval", f"the metric '{metric.name}'")
    return {metric.name for metric in fit}


def _unfit(name: str, metric: Metric, sets: Mapping[str, Collection[str]]) -> str:
    where = f"the set '{next(iter(sets))}'" if len(sets) == 1 else f"any of the sets {', '.join(sets)}"
    return f"'{name}' does not fit {where}: it needs {NEEDS[metric.needs]}"


def _fitting(sets: Mapping[str, Collection[str]]) -> str:
    return "; ".join(
        f"{f'{at} ' if len(sets) > 1 else ''}fits: {', '.join(m.name for m in _TABLE if m.needs in gives)}"
        for at, gives in sets.items()
    )


def _installed(metric: Metric) -> bool:
    return not metric.package or find_spec(metric.package) is not None


@dataclass(frozen=True)
class Column:
    """One metric of one model on one set.

    Attributes:
        terms: (n, k) of the rows that have it.
        rows: (n,) their places in the set, rising.
        total: rows of the set.
    """

    metric: Metric
    terms: Array
    rows: Array
    total: int

    def scores(self) -> list[float | None]:
        """A number for each row of the set: the figure of that row alone."""
        import numpy as np

        if not len(self.rows):
            return [None] * self.total
        shown = self.metric.rows
        each = shown(self.terms) if shown else [float(self.metric.figure(row[None], np.ones((1, 1)))[0]) for row in self.terms]
        found = dict(zip(self.rows.tolist(), each, strict=True))
        return [found.get(place) for place in range(self.total)]


def column(metric: Metric, rows: Sequence[Graded]) -> Column:
    """What the rows give for a metric.

    Raises:
        DataError: a reference or a schema of a row cannot be read as what the metric is of; with the place of the row.
        ConfigError: the metric is not of rows.
    """
    import numpy as np

    if metric.terms is None:
        raise ConfigError(f"'{metric.name}' is not a metric of rows")
    found = []
    for place, row in enumerate(rows):
        try:
            terms = metric.terms(row)
        except DataError as error:
            where = f"row {place + 1}" + (f", {error.where}" if error.where else "")
            raise DataError(error.what, where=where, fix=error.fix) from error
        if terms is not None:
            found.append((place, terms))
    values = np.array([terms for _, terms in found], np.float64).reshape(len(found), len(found[0][1]) if found else 0)
    return Column(metric, values, np.array([place for place, _ in found], np.int64), len(rows))


def value(one: Column, seed: int = 0) -> Value:
    """The figure of a column with its 95 % interval; without one where there are fewer than two rows, or no finite figure."""
    from mlxforge.evals.statistics import interval, point

    metric, n = one.metric, len(one.rows)
    if not n:
        return Value(value=None, better=metric.better, unit=metric.unit, why=_why(metric))
    figure = point(one.terms, metric.figure)
    if figure is None:
        return Value(value=None, n=n, better=metric.better, unit=metric.unit, why="not a finite number")
    low, high = interval(one.terms, metric.figure, seed) if n > 1 else (None, None)
    return Value(value=figure, low=low, high=high, n=n, better=metric.better, unit=metric.unit)


# Group, or a metric of its own -> why there is no figure, where it is not the set that lacks something.
WHY = {
    "calibration": "no answer states such a confidence",
    "latency": "no answer was timed that is long enough",
    "rag": "no row names the passage it was made from",
    "win_rate": "the others are held against it, or the judge gave no verdict",
    "judge": "the judge gave no verdict, or there is nothing to compare with",
}


def _why(metric: Metric) -> str:
    return WHY.get(metric.name) or WHY.get(metric.group) or f"no row has {NEEDS[metric.needs]}"


def compare(one: Column, other: Column, set_name: str, model: str, against: str, seed: int = 0) -> Test | None:
    """The paired test of two models on the rows that both have; None where there are fewer than two, or no finite figure."""
    import numpy as np

    from mlxforge.evals.statistics import paired

    _, mine, theirs = np.intersect1d(one.rows, other.rows, assume_unique=True, return_indices=True)
    if len(mine) < 2:
        return None
    found = paired(one.terms[mine], other.terms[theirs], one.metric.figure, seed)
    if found is None:
        return None
    return Test(set=set_name, metric=one.metric.name, model=model, against=against, n=len(mine), **found._asdict())


def remarks(rows: Sequence[Graded]) -> list[str]:
    """What a reader of the figures must know: empty answers are counted, and worth 0."""
    empty = sum(row.empty for row in rows)
    answered = sum(row.answer is not None for row in rows)
    return [f"{empty:,} of {answered:,} answers are empty: they count as wrong"] if empty else []
