"""What a report is held to, as it is written: ``sft.exact_match>=0.6``, ``retention.bpb:0.02``; every name looked up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.evals.figures import figure, labels
from mlxforge.evals.report import Report

NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
SLIPS = {"=": "==", "=>": ">=", "=<": "<=", "≥": ">=", "≤": "<=", "===": "==", "<>": "none such"}
COMPARISONS = (">=", "<=", ">", "<", "==")


class Path(NamedTuple):
    """One figure of a report."""

    label: str
    set: str
    metric: str


class Bound(NamedTuple):
    """``--require``: a figure, how it compares, and with what."""

    text: str
    path: Path
    comparison: str
    bound: float


class Tolerance(NamedTuple):
    """``--no-regression``: by how much a figure may be worse than that of ``against``; a ``share`` is of that one's value."""

    text: str
    path: Path
    against: str
    amount: float
    share: bool


def read_bound(text: str, report: Report) -> Bound:
    """``LABEL.METRIC>=0.6`` or ``LABEL.SET.METRIC>=0.6``.

    Raises:
        ConfigError: the syntax, with the place; an unknown or ambiguous label, set or metric.
    """
    where = f"--require '{text}'"
    path, comparison, bound = split_bound(text, where)
    return Bound(text, resolve(report, path, where), comparison, bound)


def split_bound(text: str, where: str) -> tuple[str, str, float]:
    """The figure's path, the comparison and the bound, as they are written.

    Raises:
        ConfigError: the syntax, with the place.
    """
    found = re.search("[<>=!≥≤]+", text)
    if not found:
        fix = "quote it, or the shell takes > as a file: --require 'sft.exact_match>=0.6'"
        raise ConfigError(f"character {len(text) + 1}: no comparison", where=where, fix=fix)
    if found[0] not in COMPARISONS:
        near = SLIPS.get(found[0], "none such")
        fix = f"did you mean '{near}'?" if near in COMPARISONS else f"one of {' '.join(COMPARISONS)}"
        raise ConfigError(f"character {found.start() + 1}: '{found[0]}' is no comparison", where=where, fix=fix)
    bound = _number(text, found.end(), where)
    path = text[: found.start()].strip()
    if not path:
        raise ConfigError("character 1: no figure", where=where, fix="LABEL.METRIC or LABEL.SET.METRIC")
    return path, found[0], bound


def read_tolerance(text: str, report: Report, models: Sequence[str], against: str | None) -> list[Tolerance]:
    """``SET.METRIC:0.02``, ``SET.METRIC:2%`` or ``LABEL.SET.METRIC:0.02``: one for each of ``models``, or for the one named.

    Raises:
        ConfigError: the syntax, with the place; an unknown or ambiguous name; nothing to hold it against.
    """
    where = f"--no-regression '{text}'"
    path, allowed, share = split_tolerance(text, where)
    other = _against(report, against)
    paths = [Path(model, *pair) for pair in _pairs(report, path) for model in models]
    if len({one.set for one in paths}) > 1:
        raise _ambiguous(path, [f"{one.set}.{one.metric}" for one in paths], where)
    if not paths and not any(path.startswith(f"{name}.") for name in _names(report)):
        raise _unknown(report, path, labels(report), where)
    paths = paths or [resolve(report, path, where)]
    for one in paths:
        if one.label == other:
            what = f"'{other}' is held against itself" if len(labels(report)) > 1 else "the report has one model"
            raise ConfigError(what, where=where, fix="name another: --against LABEL, or evaluate two models")
        if (held := figure(report, *one)) is None:
            raise ConfigError(
                f"'{one.label}' has no figure '{one.set}.{one.metric}'", where=where, fix="evaluate it on that set"
            )
        if not held.better:
            raise ConfigError(f"'{one.metric}' has no better direction", where=where, fix="use --require with a bound")
    return [Tolerance(text, one, other, allowed, share) for one in paths]


def split_tolerance(text: str, where: str) -> tuple[str, float, bool]:
    """The figure's path, by how much it may be worse, and whether that is a share, as they are written.

    Raises:
        ConfigError: the syntax, with the place.
    """
    path, colon, amount = text.rpartition(":")
    if not colon:
        raise ConfigError(f"character {len(text) + 1}: no ':' and tolerance", where=where, fix="SET.METRIC:0.02 or :2%")
    if not path.strip():
        raise ConfigError("character 1: no figure", where=where, fix="SET.METRIC:0.02")
    share = amount.rstrip().endswith("%")
    allowed = _number(text.rstrip().removesuffix("%"), len(path) + 1, where) / (100 if share else 1)
    if allowed < 0:
        raise ConfigError(f"character {len(path) + 2}: a tolerance is not below 0", where=where)
    return path.strip(), allowed, share


def _number(text: str, start: int, where: str) -> float:
    words = text[start:].strip()
    if not NUMBER.fullmatch(words):
        what = f"character {start + 1}: no number" + (f": '{words}'" if words else "")
        raise ConfigError(what, where=where, fix="a plain number such as 0.6")
    return float(words)


def _against(report: Report, against: str | None) -> str:
    known = labels(report)
    if not known:
        raise ConfigError("the report has no model", where="REPORT", fix="evaluate one")
    return known[0] if against is None else find_label(report, against, f"--against {against}")


def find_label(report: Report, name: str, where: str) -> str:
    """The label that a label or a stage names.

    Raises:
        ConfigError: there is none such, or several models have that stage.
    """
    names = _names(report)
    if name not in names:
        raise ConfigError(f"no model '{name}' in the report", where=where, fix=did_you_mean(name, names))
    if len(names[name]) > 1:
        raise ConfigError(f"{len(names[name])} models have the stage '{name}'", where=where, fix=f"name {_or(names[name])}")
    return names[name][0]


def _names(report: Report) -> dict[str, list[str]]:
    """What a model may be called -> the labels it means: a label means itself, a stage those that have it."""
    stages: dict[str, list[str]] = {}
    for one in report.models:
        if one.stage:
            stages.setdefault(one.stage, []).append(one.label)
    return {**stages, **{label: [label] for label in labels(report)}}


def resolve(report: Report, path: str, where: str) -> Path:
    """The figure that ``LABEL.METRIC`` or ``LABEL.SET.METRIC`` names; names may have dots themselves.

    Raises:
        ConfigError: a name is unknown, or the path could mean several figures.
    """
    names = _names(report)
    fitting = [name for name in names if path.startswith(f"{name}.")]
    found = {}
    for name in fitting:
        for pair in _pairs(report, path[len(name) + 1 :], names[name]):
            found[Path(find_label(report, name, where), *pair)] = name
    if len(found) == 1:
        return next(iter(found))
    if found:
        raise _ambiguous(path, [f"{name}.{one.set}.{one.metric}" for one, name in found.items()], where)
    if path in names:
        raise ConfigError(f"'{path}' is a model, not a figure", where=where, fix="LABEL.METRIC or LABEL.SET.METRIC")
    if not fitting:
        name = path.partition(".")[0]
        raise ConfigError(f"no model '{name}' in the report", where=where, fix=did_you_mean(name, names))
    name = max(fitting, key=len)
    raise _unknown(report, path[len(name) + 1 :], names[name], where)


def _pairs(report: Report, path: str, models: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """All (set, metric) that ``SET.METRIC`` or ``METRIC`` can mean among the figures of some models; a named set goes first."""
    known = dict.fromkeys((name, metric) for label, name, metric, _ in report.values() if models is None or label in models)
    exact = [pair for pair in known if ".".join(pair) == path]
    return exact or [pair for pair in known if pair[1] == path]


def _unknown(report: Report, rest: str, models: Sequence[str], where: str) -> ConfigError:
    pairs = {(name, metric) for label, name, metric, _ in report.values() if label in models}
    metrics = {metric for _, metric in pairs}
    fix = did_you_mean(rest, {*metrics, *(".".join(pair) for pair in pairs)})
    whose = f"of '{models[0]}'" if len(models) == 1 else "in the report"
    return ConfigError(
        f"no figure '{rest}' {whose}", where=where, fix=fix if fix.startswith("did") else did_you_mean(rest, metrics)
    )


def _ambiguous(path: str, choices: Iterable[str], where: str) -> ConfigError:
    known = list(choices)
    one_name = len(set(known)) == 1  # dots within names
    fix = "give labels and sets without dots" if one_name else f"name {_or(list(dict.fromkeys(known)))}"
    return ConfigError(f"'{path}' may mean several figures", where=where, fix=fix)


def _or(words: Sequence[str]) -> str:
    return " or ".join(f"'{word}'" for word in words)
