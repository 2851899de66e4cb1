"""How the figures of a report are written, which one of a set matters most, and what a test says of a change."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Literal, NamedTuple

from mlxforge.core.units import size
from mlxforge.evals.report import Better, Report, Test, Value

Standing = Literal["better", "worse", "unclear", ""]

ALPHA = 0.05
SEEN = 1e-3  # of a figure: what is less than this share of it shows in no digit
# The one figure of a set that a verdict names: the strictest that its kind has. Bits a byte before perplexity, which
# cannot be held across tokenizers.
MAIN = (
    "exact_match",
    "command_exact",
    "choice_accuracy",
    "preference_accuracy",
    "bpb",
    "f1",
    "rougeL",
    "perplexity",
    "win_rate",
)
NONE = "–"
MARKS = {"better": "▲ ", "worse": "▼ ", "unclear": "", "": ""}  # of a standing
SIGNS = {"higher": 1.0, "lower": -1.0}


class Finding(NamedTuple):
    """What became of one figure from ``against`` to ``model``; ``test`` is None where the two were not tested."""

    set: str
    metric: str
    model: str
    against: str
    before: Value | None
    after: Value
    test: Test | None
    standing: Standing


def number(value: float | None, unit: str = "") -> str:
    """``0.610``, ``12.35``, ``1,234``, ``1.2e-04``, ``1.24 GB``; a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE
    if unit == "bytes":
        return size(value)
    much = abs(value)
    if much and much < 1e-3:
        text = f"{value:.1e}"
    else:
        digits = next((digits for limit, digits in ((10, 3), (100, 2), (1000, 1)) if much < limit), 0)
        text = f"{value:,.{digits}f}"
    return f"{text} {unit}".rstrip()


def signed(value: float, unit: str = "") -> str:
    """A difference: ``+0.590``, ``-0.010``."""
    return f"{'+' if value > 0 else ''}{number(value or 0.0, unit)}"  # no minus before zero


def spread(low: float | None, high: float | None, unit: str = "") -> str:
    """An interval, ``0.550 to 0.670``; empty where there is none. A unit stands at its value, but for bytes, which scale."""
    shown = unit if unit == "bytes" else ""
    return "" if low is None or high is None else f"{number(low, shown)} to {number(high, shown)}"


def chance(p: float) -> str:
    """``p<0.001``, ``p=0.032``."""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"


def day(moment: str) -> str:
    """``2026-11-21 16:27 UTC`` of a time in ISO format; other text as it is."""
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        return moment
    return parsed.strftime("%Y-%m-%d %H:%M") + (f" {parsed.tzname()}" if parsed.tzinfo else "")


def title(name: str) -> str:
    """A metric as it is read: ``exact match``."""
    return name.replace("_", " ")


def visible(text: str) -> str:
    """Text whose hidden characters can be seen by their number: controls, direction marks and the like.

    Line ends and tabs stay, and the joiners that scripts and emoji need.
    """
    return "".join(_seen(letter) for letter in text)


def _seen(letter: str) -> str:
    if letter in "\n\t‌‍" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return letter
    return f"⟨U+{ord(letter):04X}⟩"


def labels(report: Report) -> list[str]:
    """The models in the report's order; those with figures alone come last."""
    named = [model.label for model in report.models]
    return named + [label for label in report.results if label not in named]


def set_names(report: Report) -> list[str]:
    """The sets in the report's order; those with figures alone come last."""
    named = [one.name for one in report.sets]
    return list(dict.fromkeys([*named, *(name for sets in report.results.values() for name in sets)]))


def metrics_of(report: Report, name: str) -> dict[str, Better]:
    """The metrics of one set, and which way is good, in the order in which the models have them."""
    columns = [list(sets.get(name, {}).items()) for sets in report.results.values()]
    found: dict[str, Better] = {}
    for row in zip_longest(*columns):
        for metric, value in (pair for pair in row if pair is not None):
            found[metric] = found.get(metric) or value.better
    return found


def main_metric(report: Report, name: str) -> str:
    """The metric of a set that verdict and regressions go by; empty where none has a good direction and a value."""
    known = {
        metric
        for metrics in (sets.get(name, {}) for sets in report.results.values())
        for metric, value in metrics.items()
        if value.better and value.value is not None
    }
    ordered = [*MAIN, *metrics_of(report, name)]
    return next((metric for metric in ordered if metric in known), "")


def figure(report: Report, label: str, name: str, metric: str) -> Value | None:
    """One figure, if the report has it."""
    return report.results.get(label, {}).get(name, {}).get(metric)


def find_test(report: Report, model: str, against: str, name: str, metric: str) -> Test | None:
    """The test of ``model`` minus ``against``; one made the other way round is turned."""
    for test in report.tests:
        if (test.set, test.metric) != (name, metric):
            continue
        if (test.model, test.against) == (model, against):
            return test
        if (test.model, test.against) == (against, model):
            return Test(
                set=name,
                metric=metric,
                model=model,
                against=against,
                difference=-test.difference,
                low=-test.high,
                high=-test.low,
                p=test.p,
                n=test.n,
            )
    return None


def standing(test: Test | None, value: Value) -> Standing:
    """Whether ``value`` changed by more than chance: p under 0.05 and an interval without zero. Empty where nothing was tested.

    What is beyond chance may still be too small to matter: a change under :data:`SEEN` is none.
    """
    if test is None or not value.better:
        return ""
    if test.p >= ALPHA or test.low <= 0 <= test.high or abs(test.difference) < SEEN * abs(value.value or 0.0):
        return "unclear"
    return "better" if test.difference * SIGNS[value.better] > 0 else "worse"


def finding(report: Report, model: str, against: str, name: str, metric: str) -> Finding | None:
    """What became of one figure; None where ``model`` does not have it."""
    after = figure(report, model, name, metric)
    if after is None or after.value is None:
        return None
    test = find_test(report, model, against, name, metric)
    before = figure(report, against, name, metric)
    return Finding(name, metric, model, against, before, after, test, standing(test, after))


def findings(report: Report) -> dict[str, list[Finding]]:
    """For every model but the first: the main figure of every set against the first. Of a single model: its own figures."""
    known = labels(report)
    models: Sequence[str] = known[1:] or known
    return {model: list(_mains(report, model, known[0])) for model in models}


def _mains(report: Report, model: str, first: str) -> Iterator[Finding]:
    for name in set_names(report):
        if (metric := main_metric(report, name)) and (found := finding(report, model, first, name, metric)):
            yield found


def overall(found: Sequence[Finding]) -> str:
    """All findings of a model in a word: better, worse, mixed, or no clear change; empty where nothing was tested."""
    seen = {one.standing for one in found} - {""}
    if {"better", "worse"} <= seen:
        return "mixed"
    return next((word for word in ("worse", "better") if word in seen), "no clear change" if seen else "")


def headline(report: Report) -> str:
    """The last model against the first in one sentence: on which sets it is better, on which worse."""
    known = labels(report)
    if not known:
        return "Nothing was evaluated"
    first, last = known[0], known[-1]
    found = findings(report).get(last, [])
    if first == last:
        return ": ".join([last, *(f"{title(one.metric)} {number(one.after.value, one.after.unit)}" for one in found[:1])])
    if not overall(found):
        return f"{last} beside {first}"
    told = {word: [one.set for one in found if one.standing == word] for word in ("better", "worse")}
    parts = [f"{word} on {_listed(sets)}" for word, sets in told.items() if sets]
    return f"{last} against {first}: {', '.join(parts) or 'no clear change'}"


def _listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def change(one: Finding) -> str:
    """``0.020 → 0.610``; the value alone where there is nothing before it."""
    after = number(one.after.value, one.after.unit)
    known = one.before is not None and one.before.value is not None and one.model != one.against
    return f"{number(one.before.value, one.before.unit)} → {after}" if known and one.before else after


def sentence(found: Sequence[Finding], sets: int) -> str:
    """``exact match 0.020 → 0.610, p<0.001; retention bpb 1.200 → 1.210, p=0.210``; sets are named where there are several."""
    parts = []
    for one in found:
        name = f"{one.set} " if sets > 1 else ""
        parts.append(f"{name}{title(one.metric)} {change(one)}" + (f", {chance(one.test.p)}" if one.test else ""))
    return "; ".join(parts)
