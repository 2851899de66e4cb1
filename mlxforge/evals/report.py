"""What an evaluation found, as plain values: the one structure that tables, pages and the gate read.

A report is a folder: ``report.json`` (this structure), ``rows.jsonl`` (every answer of every model with its scores),
``report.md`` and ``report.html``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlxforge.core.errors import DataError
from mlxforge.core.files import write_atomic

REPORT, ROWS = "report.json", "rows.jsonl"
MARKDOWN, PAGE = "report.md", "report.html"
VERDICT, ROAD = "gate.json", "pipeline.json"  # what the gate found, and what the pipeline came to, where there were any
RETENTION = "retention"  # the set of general text
VERSION = 1

Better = Literal["higher", "lower", ""]


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one model on one set, with its confidence interval.

    Attributes:
        value: the mean over rows, or what the metric's table says; None where it could not be had, and then ``why``.
        low, high: bounds of the 95 % bootstrap interval over rows; None where there are no rows to draw from.
        n: rows it is over.
        better: which way is good.
        unit: such as ``s``, ``tokens/s``, ``bytes``; empty for shares of 1 and plain numbers.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    better: Better = "higher"
    unit: str = ""
    why: str = ""


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """A paired test of two models on the same rows: ``difference`` is model minus against, with a 95 % interval and p."""

    set: str
    metric: str
    model: str
    against: str
    difference: float
    low: float
    high: float
    p: float
    n: int


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was evaluated. ``kind`` is base, run, adapter, fused, gguf; ``stage`` is an objective, fused, gguf or base.

    ``path`` is that of the weights on top, ``hash`` of all weights, ``size`` the bytes of their files, ``run`` a run's name.
    """

    label: str
    name: str
    kind: str
    stage: str = ""
    path: str = ""
    hash: str = ""
    size: int = 0
    family: str = ""
    run: str = ""


class SetInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What it was evaluated on. ``kind`` is text, chat, choices, pairs or commands."""

    name: str
    path: str
    kind: str
    rows: int
    hash: str = ""


class Report(msgspec.Struct, kw_only=True):
    """A whole evaluation: ``results[label][set][metric]``."""

    version: int = VERSION
    mlxforge: str = ""
    created: str = ""
    settings: dict[str, Any] = {}
    models: list[ModelInfo] = []
    sets: list[SetInfo] = []
    results: dict[str, dict[str, dict[str, Value]]] = {}
    tests: list[Test] = []
    notes: list[str] = []
    curves: dict[str, list[dict[str, Any]]] = {}

    def values(self) -> Iterator[tuple[str, str, str, Value]]:
        """All figures as (label, set, metric, value)."""
        for label, sets in self.results.items():
            for name, metrics in sets.items():
                for metric, value in metrics.items():
                    yield label, name, metric, value


def save_report(report: Report, folder: Path) -> None:
    """Writes ``report.json``; numbers that are not finite become null."""
    plain = msgspec.json.decode(msgspec.json.encode(report))
    write_atomic(folder / REPORT, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def load_report(path: Path) -> Report:
    """The report in a folder, or that a file of one belongs to.

    Raises:
        DataError: there is none, or it is damaged, or of a newer version.
    """
    file = path / REPORT if path.is_dir() else path.with_name(REPORT) if path.name in (ROWS, MARKDOWN, PAGE) else path
    try:
        report = msgspec.json.decode(file.read_bytes(), type=Report)
    except OSError as error:
        raise DataError(f"no report: {error.strerror}", where=str(file), fix="make one: mlxforge eval … -o DIR") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not a report of mlxforge eval: {error}", where=str(file), fix="make it anew") from error
    if not report.models:
        raise DataError(
            "not a report of mlxforge eval: no models in it", where=str(file), fix="make one: mlxforge eval … -o DIR"
        )
    if report.version > VERSION:
        raise DataError(f"written by a newer mlxforge (version {report.version})", where=str(file), fix="update mlxforge")
    return report
