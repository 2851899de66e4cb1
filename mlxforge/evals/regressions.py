"""Rows that became worse: every answer of every model by row, and the order in which a reader wants to see them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from mlxforge.core.errors import DataError
from mlxforge.core.files import disk_errors
from mlxforge.evals.figures import MAIN, SIGNS, labels, main_metric, metrics_of, set_names
from mlxforge.evals.report import Report

MEASURED = ("s", "tokens/s", "bytes")
Key = tuple[str, int]  # set, row
Scores = Mapping[str, float]


class Line(msgspec.Struct, frozen=True):
    """One line of ``rows.jsonl``: what one model made of one row. ``prompt`` is messages, a text or None."""

    set: str
    row: int
    model: str
    prompt: Any = None
    reference: Any = None
    answer: str | None = None
    finish: str | None = None
    scores: dict[str, float | None] = {}
    context: list[dict[str, Any]] | None = None
    source: Any = None
    judge: dict[str, Any] | None = None  # what was asked -> the verdict with its reason


class Kept(NamedTuple):
    """What is held of a line in memory: its scores, and where in the file it begins."""

    scores: dict[str, float]
    offset: int


class Rows:
    """All rows of a file by set and number; texts stay in the file until they are asked for."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.kept: dict[Key, dict[str, Kept]] = {}
        if not file.is_file():
            return
        with disk_errors(file), open(file, "rb") as stream:
            offset = 0
            for number, raw in enumerate(stream, 1):
                if raw.strip():
                    line = self._decoded(raw, number)
                    scores = {name: score for name, score in line.scores.items() if score is not None and math.isfinite(score)}
                    self.kept.setdefault((line.set, line.row), {})[line.model] = Kept(scores, offset)
                offset += len(raw)

    def _decoded(self, raw: bytes, number: int) -> Line:
        try:
            return msgspec.json.decode(raw, type=Line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"no row of an evaluation: {error}", where=f"{self.file}:{number}", fix="evaluate anew") from error

    def read(self, keys: Iterable[Key]) -> Iterator[dict[str, Line]]:
        """The lines of each row by model, in the order of ``keys``."""
        if not self.kept:
            return
        with open(self.file, "rb") as stream:
            for key in keys:
                yield {model: self._at(stream, one.offset) for model, one in self.kept[key].items()}

    @staticmethod
    def _at(stream: BinaryIO, offset: int) -> Line:
        stream.seek(offset)
        return msgspec.json.decode(stream.readline(), type=Line)


def signs(report: Report, name: str) -> dict[str, float]:
    """The metrics of a set that rows are held against each other by, the weightiest first: +1 where higher is better, else -1.

    Speed and memory are none: two runs of one model differ in them.
    """
    values = [sets[name] for sets in report.results.values() if name in sets]
    measured = {metric for metrics in values for metric, value in metrics.items() if value.unit in MEASURED}
    known = {metric: better for metric, better in metrics_of(report, name).items() if better and metric not in measured}
    first = main_metric(report, name)
    ordered = sorted(known, key=lambda metric: (metric != first, MAIN.index(metric) if metric in MAIN else len(MAIN)))
    return {metric: SIGNS[known[metric]] for metric in ordered}


def gain(before: Scores, after: Scores, good: Mapping[str, float]) -> tuple[float, ...]:
    """The change of each score, positive where it is better, the weightiest metric first: compares as tuples do."""
    return tuple(sign * (after[name] - before[name]) for name, sign in good.items() if name in before and name in after)


def quality(scores: Scores, good: Mapping[str, float]) -> tuple[float, ...]:
    """The scores of one answer, higher is better, the weightiest first."""
    return tuple(sign * scores[name] for name, sign in good.items() if name in scores)


def ranked(report: Report, rows: Rows, name: str, *, previous: bool = False) -> list[Key]:
    """The rows of one set, worst regression first: of any model against the first, or against the one before it.

    Where nothing changed, bad answers of the last model come before good ones.
    """
    good, order = signs(report, name), labels(report)

    def place(key: Key) -> tuple[Any, ...]:
        known = [(label, rows.kept[key][label].scores) for label in order if label in rows.kept[key]]
        pairs = pairwise(known) if previous else ((known[0], one) for one in known[1:])
        changes = [one for (_, before), (_, after) in pairs if (one := gain(before, after, good))]
        return (min(changes, default=(math.inf,)), quality(known[-1][1], good) if known else (), key[1])

    return sorted((key for key in rows.kept if key[0] == name), key=place)


def worst(report: Report, rows: Rows) -> Iterator[Key]:
    """All rows, worst first: sets take turns, and within a set the two ways of comparing do."""
    known = {key[0] for key in rows.kept}
    names = [*set_names(report), *sorted(known - set(set_names(report)))]
    queues = [
        _in_turn(ranked(report, rows, name), ranked(report, rows, name, previous=True)) for name in names if name in known
    ]
    return _in_turn(*queues)


def _in_turn(*queues: Iterable[Key]) -> Iterator[Key]:
    """One of each at a time, every key once."""
    seen: set[Key] = set()
    for key in chain.from_iterable(zip_longest(*queues)):
        if key is not None and key not in seen:
            seen.add(key)
            yield key


def lost(report: Report, rows: Rows, model: str, against: str, name: str) -> Sequence[Key]:
    """The rows of a set on which ``model`` is worse than ``against``, worst first."""
    good = signs(report, name)
    changes = {
        key: gain(found[against].scores, found[model].scores, good)
        for key, found in rows.kept.items()
        if key[0] == name and model in found and against in found
    }
    return sorted((key for key, one in changes.items() if one and one < (0.0,) * len(one)), key=lambda key: (changes[key], key))
