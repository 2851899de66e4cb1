"""What lm-evaluation-harness found, as plain values, and these as sets of a report."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from mlxforge.core.files import bytes_hash
from mlxforge.evals.estimators import mean, share
from mlxforge.evals.metrics import Column, Metric, compare, value
from mlxforge.evals.report import Better, Report, SetInfo, Value
from mlxforge.runs.eval_figures import pairs
from mlxforge.runs.eval_job import Job

PLAIN = "none"  # the filter that leaves answers as they are
BETTER: dict[bool | None, Better] = {True: "higher", False: "lower", None: ""}


def plain(at: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """A task's figures and rows as plain values; the names of figures have their filter's behind them, where there is one."""
    samples = results.get("samples", {}).get(at, [])
    places = {doc: place for place, doc in enumerate(sorted({one["doc_id"] for one in samples}))}
    rows: list[dict[str, Any]] = [{} for _ in places]
    for one in samples:
        row, label = rows[places[one["doc_id"]]], one.get("filter", PLAIN)
        row.update(_row(one), scores={**row.get("scores", {}), **_scores(one, label)})
    figures = {
        _figure(*key.split(",", 1)): float(found)
        for key, found in results["results"][at].items()
        if "," in key and "_stderr," not in key and _is_number(found)
    }
    higher = results.get("higher_is_better", {}).get(at, {})
    better = {
        name: BETTER[higher.get(max((one for one in higher if name.startswith(one)), key=len, default=""))] for name in figures
    }
    total = len(rows) or int(results["results"][at].get("sample_len") or 0)
    return {"figures": figures, "better": better, "rows": rows, "total": total, "shots": results.get("n-shot", {}).get(at)}


def _figure(metric: str, label: str = PLAIN) -> str:
    return (metric if label == PLAIN else f"{metric}_{label}").replace(".", "_")


def _is_number(found: Any) -> bool:
    return isinstance(found, numbers.Real) and math.isfinite(found)


def _scores(one: Mapping[str, Any], label: str) -> dict[str, float]:
    return {_figure(name, label): float(one[name]) for name in one.get("metrics", ()) if _is_number(one.get(name))}


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt, the right answer and the model's: of choices the likeliest."""
    asked, said, target = one["arguments"], one["filtered_resps"], one["target"]
    choices = [str(given[1]).strip() for given in asked] if len(asked) > 1 else []
    likely = [found[0] for found in said if isinstance(found, (list, tuple)) and found]
    if choices and len(likely) == len(choices):
        answer: str | None = choices[max(range(len(choices)), key=lambda place: likely[place])]
        right = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else str(target)
    else:
        answer, right = next((found for found in said if isinstance(found, str)), None), str(target)
    return {"prompt": str(asked[0][0]), "reference": right, "answer": answer}


def add(report: Report, job: Job) -> Iterator[dict[str, Any]]:
    """Puts the tasks into a report, each a set of its own with tests between models.

    Returns:
        The lines of ``rows.jsonl``.
    """
    labels = [named.label for named in job.models]
    lines = list[dict[str, Any]]()
    for task in dict.fromkeys(task for label in labels for task in job.suite[label]):
        done = {label: job.suite[label][task] for label in labels}
        name = task if all(task != one.name for one in report.sets) else f"{task} (lm-eval)"
        rows = done[labels[0]]["rows"]
        content = bytes_hash(*(row["prompt"] for row in rows))
        report.sets.append(
            SetInfo(name=name, path=f"lm-eval:{task}", kind="lm-eval", rows=done[labels[0]]["total"], hash=content)
        )
        columns = {label: _columns(found) for label, found in done.items()}
        for label in labels:
            figures = {at: _value(done[label], columns[label], at, job.settings.seed) for at in done[label]["figures"]}
            report.results[label][name] = figures
            lines += (
                {"set": name, "row": place, "model": label, **row, "finish": None, "context": None, "source": None}
                for place, row in enumerate(done[label]["rows"])
            )
        for label, against in pairs(labels):
            for at in columns[label].keys() & columns[against].keys():
                found = compare(columns[label][at], columns[against][at], name, label, against, job.settings.seed)
                if found is not None:
                    report.tests.append(found)
    return iter(lines)


def _columns(done: Mapping[str, Any]) -> dict[str, Column]:
    """The figures that are the mean of their rows: of others, such as a corpus BLEU, rows cannot be redrawn."""
    import numpy as np

    found = {}
    for name, figure in done["figures"].items():
        scores = [(place, row["scores"][name]) for place, row in enumerate(done["rows"]) if name in row["scores"]]
        terms = np.array([[score] for _, score in scores], np.float64).reshape(len(scores), 1)
        if not scores or not math.isclose(terms.mean(), figure, rel_tol=1e-6, abs_tol=1e-9):
            continue
        within = bool(((terms >= 0) & (terms <= 1)).all())
        metric = Metric(name, "lm-eval", "", done["better"][name], "", figure=share if within else mean)
        found[name] = Column(metric, terms, np.array([place for place, _ in scores]), len(done["rows"]))
    return found


def _value(done: Mapping[str, Any], columns: Mapping[str, Column], name: str, seed: int) -> Value:
    if name in columns:
        return value(columns[name], seed)
    return Value(value=done["figures"][name], n=done["total"], better=done["better"][name])
