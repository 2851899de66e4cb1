"""Writes the folder of a report: values, rows, and the two pages that people read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxforge.core.files import disk_errors, new_file, write_atomic
from mlxforge.evals.markdown import markdown
from mlxforge.evals.outcome import beside
from mlxforge.evals.page import page
from mlxforge.evals.regressions import Rows
from mlxforge.evals.report import MARKDOWN, PAGE, ROAD, ROWS, VERDICT, Report, load_report, save_report


def write_report(report: Report, rows: Iterable[Mapping[str, Any]] | None, folder: Path) -> None:
    """Writes ``report.json``, ``rows.jsonl``, ``report.md`` and ``report.html`` into ``folder``, each one whole or not at all.

    Args:
        rows: the lines of ``rows.jsonl``; None where that file stands there already, or the evaluation has no rows.

    Raises:
        DataError: a line of ``rows.jsonl`` is none of an evaluation.
        MlxforgeError: the folder cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if rows is not None:
        write_rows(rows, folder / ROWS)
    for stale in (VERDICT, ROAD):  # they are of the report that was here
        (folder / stale).unlink(missing_ok=True)
    _pages(report, folder)
    save_report(report, folder)


def write_pages(folder: Path) -> None:
    """Writes the pages of a report anew, with what the gate and the pipeline have left beside it.

    Raises:
        DataError: a file of the folder is damaged.
        MlxforgeError: the folder cannot be written.
    """
    _pages(load_report(folder), folder)


def _pages(report: Report, folder: Path) -> None:
    rows, known = Rows(folder / ROWS), beside(folder)
    write_atomic(folder / MARKDOWN, markdown(report, rows, known))
    write_atomic(folder / PAGE, page(report, rows, known))


def write_rows(rows: Iterable[Mapping[str, Any]], file: Path) -> None:
    """One line of JSON a row; a score that is not finite becomes null, half a surrogate pair a question mark."""
    with new_file(file) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as stream:
        for row in rows:
            scores = {
                name: score if score is not None and math.isfinite(score) else None for name, score in row["scores"].items()
            }
            stream.write(json.dumps({**row, "scores": scores}, ensure_ascii=False) + "\n")
