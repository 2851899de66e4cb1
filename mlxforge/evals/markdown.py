"""A report as Markdown that GitHub renders: the verdict, a table for every set, the tests, the worst regressions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from mlxforge.evals.figures import (
    MARKS,
    chance,
    day,
    figure,
    find_test,
    findings,
    headline,
    labels,
    metrics_of,
    number,
    overall,
    sentence,
    set_names,
    signed,
    spread,
    standing,
    title,
    visible,
)
from mlxforge.evals.outcome import CHECKS, STAGES, Beside, check_cells, stages, told
from mlxforge.evals.regressions import Line, Rows, lost
from mlxforge.evals.report import ROWS, Report

WORST, LETTERS = 5, 400
SPECIAL = re.compile(r"([\\`*\[\]|~#@$])|(?<![^\W_])_|_(?![^\W_])")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def plain(text: str) -> str:
    """Foreign text on one line that Markdown takes as text: no tags, links, cells, mentions or emphasis come of it."""
    line = " ↵ ".join(part.strip() for part in visible(text).replace("\t", " ").splitlines())
    escaped = SPECIAL.sub(lambda found: f"&#{ord(found[0])};", re.sub("[&<>]", lambda found: ENTITIES[found[0]], line))
    return escaped.replace("://", "&#58;//")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: int) -> Iterator[str]:
    """A table whose columns from ``right`` on are set to the right."""
    yield f"| {' | '.join(headings)} |"
    yield f"|{'|'.join('---:' if column >= right else '---' for column in range(len(headings)))}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def markdown(report: Report, rows: Rows, known: Beside) -> str:
    """The whole page; ``rows`` gives the examples."""
    above = (_head(report), _outcome(known), _models(report), _sets(report), _tests(report))
    below = (_curves(report), _worst(report, rows), _notes(report))
    return "\n".join(line for part in (*above, *below) for line in part).rstrip() + "\n"


def _head(report: Report) -> Iterator[str]:
    known, sets = labels(report), len(set_names(report))
    yield from (f"# {plain(headline(report))}", "")
    for model, found in findings(report).items():
        if found:
            word = overall(found)
            against = f" against {plain(known[0])}" if model != known[0] else ""
            told = plain(sentence(found, sets))
            yield f"- **{plain(model)}**{against}{f' — **{word}**' if word else ''}: {told}"
    facts = [part for part in (day(report.created), f"mlxforge {report.mlxforge}" if report.mlxforge else "") if part]
    yield from ("", *([plain(" · ".join(facts)), ""] if facts else []))


def _outcome(known: Beside) -> Iterator[str]:
    if known.verdict:
        yield from ("## Gate", "", f"**{plain(told(known.verdict))}**", "")
        cells = [tuple(map(plain, check_cells(check))) for check in known.verdict.requirements]
        yield from table(CHECKS, cells, 3)
    if known.road:
        yield from ("## Stages", "")
        yield from table(STAGES, [tuple(map(plain, row)) for row in stages(known.road)], 3)


def _models(report: Report) -> Iterator[str]:
    if not report.models:
        return
    yield from ("## Models", "")
    cells = [
        (
            plain(one.label),
            plain(one.kind),
            plain(one.stage),
            plain(one.name),
            plain(one.family),
            f"`{one.hash[:12]}`" if one.hash.isalnum() else plain(one.hash[:12]),
            number(one.size, "bytes") if one.size else "",
        )
        for one in report.models
    ]
    yield from table(("label", "kind", "stage", "model", "family", "hash", "size"), cells, 6)


def _sets(report: Report) -> Iterator[str]:
    known = {one.name: one for one in report.sets}
    for name in set_names(report):
        facts = f"{known[name].kind}, {known[name].rows:,} rows, {plain(known[name].path)}" if name in known else ""
        yield from (f"## {plain(name)}", "", *([facts, ""] if facts else []))
        columns = [label for label in labels(report) if report.results.get(label, {}).get(name)]
        if not columns:
            yield from ("Nothing was measured.", "")
            continue
        metrics, rows = metrics_of(report, name), known[name].rows if name in known else 0
        lines = [
            (plain(title(metric)) + ARROWS[better], *(cell(report, label, name, metric, rows) for label in columns))
            for metric, better in metrics.items()
        ]
        yield from table(("metric", *map(plain, columns)), lines, 1)


def cell(report: Report, label: str, name: str, metric: str, rows: int) -> str:
    """``▲ 0.610 (0.550 to 0.670, n=20)``, n where it is not all ``rows``; where there is no value, the reason."""
    value = figure(report, label, name, metric)
    if value is None:
        return ""
    if value.value is None:
        return f"– {plain(value.why)}".rstrip()
    bounds = spread(value.low, value.high, value.unit)
    facts = ", ".join([*([bounds] if bounds else []), *([f"n={value.n:,}"] if value.n not in (0, rows) else [])])
    why = f" {plain(value.why)}" if value.why else ""
    first = labels(report)[0]
    mark = MARKS[standing(find_test(report, label, first, name, metric) if label != first else None, value)]
    return mark + number(value.value, value.unit) + (f" <sub>({facts})</sub>" if facts else "") + why


def _tests(report: Report) -> Iterator[str]:
    if not report.tests:
        return
    yield from ("## Paired tests", "")
    lines = []
    for test in report.tests:
        value = figure(report, test.model, test.set, test.metric)
        unit = value.unit if value else ""
        names = (plain(test.set), plain(title(test.metric)), plain(test.model), plain(test.against))
        figures = (signed(test.difference, unit), spread(test.low, test.high, unit), plain(chance(test.p)), f"{test.n:,}")
        lines.append((*names, *figures))
    yield from ("<details>", f"<summary>{len(lines):,} tests</summary>", "")
    yield from table(("set", "metric", "model", "against", "difference", "95 % interval", "p", "rows"), lines, 4)
    yield from ("</details>", "", "The same rows for both models. p is not corrected for the number of tests.", "")


def _curves(report: Report) -> Iterator[str]:
    if not report.curves:
        return
    yield from ("## Training", "")
    lines = []
    for label, points in report.curves.items():
        losses = [point["loss"] for point in points if point.get("loss") is not None]
        valid = [(point["valid"], point["step"]) for point in points if point.get("valid") is not None]
        best = f"{number(min(valid)[0])} at step {min(valid)[1]:,}" if valid else ""
        last = f"{max(point['step'] for point in points):,}" if points else ""
        ends = f"{number(losses[0])} → {number(losses[-1])}" if losses else ""
        lines.append((plain(label), last, ends, best))
    yield from table(("model", "steps", "loss", "best validation loss"), lines, 1)


def _worst(report: Report, rows: Rows) -> Iterator[str]:
    known = labels(report)
    if len(known) < 2:
        return
    model, against = known[-1], known[0]
    for name in set_names(report):
        keys = lost(report, rows, model, against, name)
        if not keys:
            continue
        summary = f"{plain(name)}: {len(keys):,} rows on which {plain(model)} is worse than {plain(against)}"
        yield from ("<details>", f"<summary>{summary}</summary>", "")
        for key, lines in zip(keys, rows.read(keys[:WORST]), strict=False):
            yield from _example(key[1], lines, (against, model))
        yield from (f"All rows: `{ROWS}`", "", "</details>", "")


def _example(row: int, lines: dict[str, Line], models: Sequence[str]) -> Iterator[str]:
    first = lines[models[0]]
    yield f"**Row {row}**" + (f" {_short(asked(first.prompt))}" if first.prompt else "")
    yield ""
    told = [("reference", first.reference)] if first.reference is not None else []
    for name, text in [*told, *((label, lines[label].answer) for label in models)]:
        if text is not None:
            yield f"- {plain(name)}: {_short(text if isinstance(text, str) else str(text))}"
    yield ""


def asked(prompt: Any) -> str:
    """The last thing that was said to the model."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        return str(prompt[-1].get("content", ""))
    return str(prompt)


def _short(text: str) -> str:
    return plain(text if len(text) <= LETTERS else f"{text[:LETTERS]}… ({len(text) - LETTERS:,} letters more)")


def _notes(report: Report) -> Iterator[str]:
    if report.notes:
        yield from ("## Notes", "", *(f"- {plain(note)}" for note in report.notes), "")
