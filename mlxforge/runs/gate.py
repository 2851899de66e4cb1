"""Holds a report to requirements, and leaves the verdict beside it and in the runs that it is about."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import ConfigError, RunError
from mlxforge.core.files import write_atomic
from mlxforge.evals.checks import LEVEL, hold, hold_tolerance
from mlxforge.evals.figures import labels
from mlxforge.evals.report import PAGE, REPORT, VERDICT, ModelInfo, Report, load_report
from mlxforge.evals.requirements import find_label, read_bound, read_tolerance
from mlxforge.evals.write import write_pages
from mlxforge.models.adapters import ADAPTER_WEIGHTS
from mlxforge.runs.record import RECORD, moment, read_record


def gate(
    path: Path,
    require: Sequence[str] = (),
    no_regression: Sequence[str] = (),
    *,
    against: str | None = None,
    confidence: float = LEVEL,
    strict: bool = False,
    runs_dir: Path = Path("runs"),
) -> dict[str, Any]:
    """Checks a report, and writes ``gate.json`` beside it and into the run directory of every model that is held to something.

    The pages of the report, where they are there, show the verdict.

    ``no_regression`` is about the models that ``require`` names, else about the last one of the report.

    Returns:
        What ``gate.json`` holds (``passed``, ``requirements``, ``report``, ``time``, ``confidence``, ``strict``) and
        ``notes``: which runs were left alone, and why.

    Raises:
        ConfigError: nothing is required, or a requirement cannot be read or names what is not there.
        DataError: no report.
    """
    if not require and not no_regression:
        raise ConfigError("nothing is required", where="command line", fix="--require 'LABEL.METRIC>=0.6' or --no-regression")
    report = load_report(path)
    bounds = [read_bound(text, report) for text in require]
    against = find_label(report, against, f"--against {against}") if against is not None else None
    models = _models(report, [bound.path.label for bound in bounds], against)
    tolerances = [one for text in no_regression for one in read_tolerance(text, report, models, against)]
    checks = [hold(report, one, confidence=confidence, strict=strict) for one in bounds]
    checks += [hold_tolerance(report, one, confidence=confidence, strict=strict) for one in tolerances]
    folder = path if path.is_dir() else path.parent
    verdict = {
        "passed": all(check.passed for check in checks),
        "requirements": [msgspec.to_builtins(check) for check in checks],
        "report": str((folder / REPORT).resolve()),
        "time": datetime.now().astimezone().isoformat(),
        "confidence": confidence,
        "strict": strict,
    }
    notes = _leave(verdict, report, _about(report, {check.model for check in checks}, bool(require)), folder, runs_dir)
    return {**verdict, "notes": notes}


def _about(report: Report, held: set[str], named: bool) -> list[ModelInfo]:
    """Whose runs get the verdict: the models that are held to something; where none was named, at least the last run."""
    runs = [one for one in report.models if one.run]
    about = [one for one in runs if one.label in held]
    return about or ([] if named else runs[-1:])


def _models(report: Report, named: Sequence[str], against: str | None) -> list[str]:
    """Whom a regression is looked for in: the models that are named, without the one they are held against; else the last."""
    first = against if against is not None else labels(report)[0] if labels(report) else ""
    return [label for label in dict.fromkeys(named) if label != first] or labels(report)[-1:]


def _leave(verdict: dict[str, Any], report: Report, held: Sequence[ModelInfo], folder: Path, runs_dir: Path) -> list[str]:
    """Writes the verdict; returns what could not be written to, and why."""
    content = json.dumps(verdict, indent=2, ensure_ascii=False) + "\n"
    write_atomic(folder / VERDICT, content)
    if (folder / PAGE).is_file():
        write_pages(folder)
    notes = []
    for model in held:
        place, why = run_of(model, report, runs_dir)
        if place:
            write_atomic(place / VERDICT, content)
        else:
            notes.append(f"{model.label}: {why}: its run got no {VERDICT}")
    return notes


def run_of(model: ModelInfo, report: Report, runs_dir: Path) -> tuple[Path | None, str]:
    """The run directory that a verdict on a model is about, or why there is none: it is what ``run:NAME`` opens, unchanged."""
    known = [place for place in (Path(model.path), runs_dir / model.run) if (place / RECORD).is_file()]
    # Of a copied project the report names the runs of the original, which lies there too.
    if len(known) == 2 and _same_adapter(*known):
        known.reverse()
    above = Path(model.path).parent.parent
    if (above / RECORD).is_file() and above.name == model.run:
        return None, f"a checkpoint, not what run:{model.run} opens"
    if not known:
        return None, f"the run '{model.run}' is gone"
    try:
        ended, made = moment(read_record(known[0]).get("ended")), moment(report.created)
    except RunError as error:
        return None, str(error)
    # The report has whole seconds.
    if ended is not None and made is not None and ended > made + 1:
        return None, f"the run '{model.run}' was trained on since the report"
    return known[0], ""


def _same_adapter(one: Path, other: Path) -> bool:
    first, second = one / ADAPTER_WEIGHTS, other / ADAPTER_WEIGHTS
    return first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)
