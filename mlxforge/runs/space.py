"""What a sweep tries: settings with the values or the range that each may take, and the figure that trials are judged by."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from mlxforge.core.config import Layer, resolve, type_name, walk
from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.core.settings import PreferenceSettings, TrainSettings

WHERE = "--over"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\s*\.\.(?!\.)\s*({NUMBER})((?::\w+)*)")  # three dots may be a slip or 1...5, 0.5
EDGE = 0.05
DIGITS = 3  # of a number drawn from a range: settings stay readable
OWN = {"name": "the sweep names its runs", "runs_dir": "all runs of a sweep lie in one folder"}
# Settings that change what a loss means: losses of trials that differ in them cannot be held against each other.
MEANINGS = frozenset(
    "model valid valid_split max_length train_on loss beta gamma label_smoothing sft_weight dpop_weight desirable_weight "
    "undesirable_weight reference".split()
)
LOWER, HIGHER = ("loss", "bpb", "perplexity"), ("accuracy", "margin", "exact_match", "prefix_match", "preference_accuracy")


@dataclass(frozen=True)
class Dimension:
    """One setting: the ``values`` it may take, or a range, both ends included.

    ``points`` is how many values of a range a grid tries; 0 where none was said.
    """

    key: str
    text: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    points: int = 0

    def rounded(self, value: float) -> float | int:
        """A number of the range, short enough to be read."""
        if self.whole:
            return round(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def at_end(self, value: Any) -> bool:
        """Whether a value lies within a twentieth of the range from one of its ends: the best may lie outside."""
        if self.values:
            return False
        low, high, here = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return min(here - low, high - here) < EDGE * (high - low)

    def grid(self) -> tuple[Any, ...]:
        """All values of a grid.

        Raises:
            ConfigError: a range without a number of points.
        """
        if self.values:
            return self.values
        if not self.points:
            fix = f"write {self.text}:5 for five of them, or leave --grid out"
            raise ConfigError("a grid needs the number of points of a range", where=f"{WHERE} '{self.text}'", fix=fix)
        if self.points == 1:
            return (self.rounded(self.low),)
        shares = [index / (self.points - 1) for index in range(self.points)]
        ratio = self.high / self.low if self.log else 0.0
        spread = [self.low * ratio**share if self.log else self.low + (self.high - self.low) * share for share in shares]
        return tuple(dict.fromkeys(self.rounded(value) for value in spread))


@dataclass(frozen=True)
class Metric:
    """A figure of a run's result: ``valid.loss``, ``retention.bpb``, ``task.exact_match``."""

    set: str
    figure: str

    @property
    def name(self) -> str:
        """As it is written."""
        return f"{self.set}.{self.figure}"

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return self.figure in HIGHER

    def of(self, result: Mapping[str, Any]) -> float | None:
        """Its value in a run's result, at the weights that were kept; None where there is none."""
        task = (result.get("task") or {}).get(self.figure) or {}
        found = {"valid": result.get("valid"), "retention": (result.get("retention") or {}).get("after")}.get(self.set)
        value = task.get("after") if self.set == "task" else (found or {}).get(self.figure)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def dimensions(settings: type[TrainSettings], over: Sequence[str]) -> list[Dimension]:
    """The settings of ``--over KEY=VALUES``, every value checked as the setting itself is.

    VALUES is ``8,16,32``, or ``1e-5..5e-4`` with ``:log`` and, for a grid, the number of points behind.

    Raises:
        ConfigError: one line for what is wrong, with the place.
    """
    leaves = {key: annotation for key, annotation, _ in walk(settings)}
    found: dict[str, Dimension] = {}
    for text in over:
        where = f"{WHERE} '{text}'"
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not values:
            raise ConfigError("no range", where=where, fix="write KEY=1e-5..5e-4:log or KEY=8,16,32")
        if key in OWN:
            raise ConfigError(f"{key} cannot be searched: {OWN[key]}", where=where, fix="leave it out")
        if key not in leaves:
            raise ConfigError(f"unknown setting '{key}'", where=where, fix=did_you_mean(key, leaves))
        if key in found:
            raise ConfigError(f"'{key}' is given twice", where=where, fix="keep one of them")
        match = RANGE.fullmatch(values)
        found[key] = _range(key, text, where, match, leaves[key]) if match else _choices(key, text, where, values)
        one = found[key]
        ends = one.values or (one.rounded(one.low), one.rounded(one.high))
        read = tuple(value_of(resolve(settings, Layer({key: value}, {key: where})), key) for value in ends)
        if one.values:
            found[key] = replace(one, values=tuple({msgspec.json.encode(value): value for value in read}.values()))
    if not found:
        raise ConfigError("nothing to search over", where=WHERE, fix=f"{WHERE} 'learning_rate=1e-5..5e-4:log'")
    return list(found.values())


def _range(key: str, text: str, where: str, match: re.Match[str], annotation: Any) -> Dimension:
    kinds = set(type_name(annotation).split(" or "))
    if not kinds & {"integer", "number"}:
        raise ConfigError(f"{key} is {type_name(annotation)}, which has no range", where=where, fix="list values: a,b,c")
    whole = "integer" in kinds
    log, points = False, 0
    for word in filter(None, match[3].split(":")):
        if word != "log" and not word.isdecimal():
            raise ConfigError(
                f"'{word}' is no property of a range", where=where, fix="':log', or a number of points for --grid"
            )
        log, points = log or word == "log", int(word) if word.isdecimal() else points
    low, high = float(match[1]), float(match[2])
    if whole and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{key} is a whole number", where=where, fix="write whole numbers, such as 4..64")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError("a range is between finite numbers", where=where)
    if low >= high:
        raise ConfigError("the range is empty: it ends before it begins", where=where, fix="write the smaller number first")
    if log and low <= 0:
        raise ConfigError("a range by logarithms begins above 0", where=where, fix="raise its start, or leave ':log' out")
    return Dimension(key, text, (), low, high, log, whole, points)


def _choices(key: str, text: str, where: str, values: str) -> Dimension:
    import yaml

    try:
        read = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        read = None
    if not isinstance(read, list) or (unfinished := ".." in values and len(read) == 1):
        fix = "write LOW..HIGH, such as 1e-5..5e-4:log" if read and unfinished else "write a,b,c; a list as [x, y],[z]"
        raise ConfigError("neither values nor a range", where=where, fix=fix)
    return Dimension(key, text, tuple(read))


def points(space: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    """All combinations of a grid, the last setting changing fastest."""
    for values in itertools.product(*(one.grid() for one in space)):
        yield dict(zip((one.key for one in space), values, strict=True))


def value_of(config: TrainSettings, key: str) -> Any:
    """The value of a setting by its dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def applied(config: TrainSettings, values: Mapping[str, Any]) -> TrainSettings:
    """The settings with some of them replaced, by dotted key.

    Raises:
        ConfigError: a value is of the wrong type or out of bounds.
    """
    flat = {key: value_of(config, key) for key, _, _ in walk(type(config))}
    return resolve(type(config), Layer(flat, {}), Layer(dict(values), dict.fromkeys(values, WHERE)))


def metric(name: str, config: TrainSettings, space: Sequence[Dimension]) -> Metric:
    """The figure of ``--metric``.

    Raises:
        ConfigError: no such figure, none that these runs have, or none that can be compared between them.
    """
    where = f"--metric {name}"
    part, dot, figure = name.partition(".")
    if not dot or figure not in LOWER + HIGHER or part not in ("valid", "retention", "task"):
        known = [f"valid.{one}" for one in (*LOWER, "accuracy", "margin")]
        known += [f"retention.{one}" for one in LOWER] + ["task.exact_match", "task.prefix_match", "task.preference_accuracy"]
        raise ConfigError("no figure of a run's result", where=where, fix=did_you_mean(name, known))
    pairs = isinstance(config, PreferenceSettings)
    needs = {
        "valid": (config.valid or config.valid_split, "give valid or a valid_split above 0"),
        "retention": (config.retention, "give retention: a general text"),
        "task": (pairs if figure == "preference_accuracy" else getattr(config, "task", None), "give task: held-out questions"),
    }
    score = getattr(config, "score", figure)
    if part == "task" and figure not in (score, "preference_accuracy"):
        raise ConfigError(f"these runs have no {name}", where=where, fix=f"take task.{score}, or another match")
    if not needs[part][0]:
        raise ConfigError(f"these runs have no {name}", where=where, fix=needs[part][1])
    if part == "valid" and (figure in ("bpb", "perplexity") if pairs else figure not in LOWER):
        raise ConfigError(f"these runs have no {name}", where=where, fix="take valid.loss" + (" or valid.accuracy" * pairs))
    unlike = MEANINGS | ({"data", "map"} if config.valid is None else set())
    for one in space:
        if part == "valid" and figure in ("loss", "perplexity", "margin") and one.key in unlike:
            other = "valid.accuracy" if pairs else "task.exact_match"
            raise ConfigError(f"{one.key} changes what {name} means", where=where, fix=f"judge by another, such as {other}")
    return Metric(part, figure)
