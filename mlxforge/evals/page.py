"""A report as one HTML file that needs nothing else: no network, no fonts, no script but its own.

What models and data said is data in it: JSON that its script sets as text, or escaped text. The page's policy lets no other
script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from mlxforge.evals.charts import bounds, curve, whisker
from mlxforge.evals.explorer import as_json, explorer, shown_rows
from mlxforge.evals.figures import (
    MARKS,
    Finding,
    chance,
    change,
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
from mlxforge.evals.regressions import Rows
from mlxforge.evals.report import Report, Test, Value

WEB = Path(__file__).parent / "web"
ARROWS = {"higher": ("↑", "higher is better"), "lower": ("↓", "lower is better")}
MANY = 12  # tests that are shown unasked
OPEN = '<div class="scroll" tabindex="0" role="region" aria-label="table">'
FIELDS = ("label", "kind", "stage", "model", "family", "size", "hash", "run")


def text(words: object) -> str:
    """Foreign text, escaped and held apart, so that its direction does not turn its neighbours."""
    return f"<bdi>{html.escape(visible(str(words)))}</bdi>"


def figures(words: str) -> str:
    """Numbers with a true minus."""
    return html.escape(words).replace("-", "−")


def page(report: Report, rows: Rows, known: Beside) -> str:
    """The whole file."""
    style, script = (WEB / "page.css").read_text("utf-8"), (WEB / "page.js").read_text("utf-8")
    shown = list(shown_rows(report, rows))
    parts = [
        _header(report, known, bool(shown)),
        "<main>",
        *_gate(known),
        *_stages(known),
        *_sets(report),
        *_tests(report),
        *_curves(report),
    ]
    parts += explorer(len(rows.kept), len(shown)) if shown else ()
    parts += [*_models(report), *_notes(report), "</main>", _footer(report)]
    if shown:
        parts += [f'<script type="application/json" id="data">{as_json(report, shown)}</script>', f"<script>{script}</script>"]
    trusted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{trusted}'; base-uri 'none'; form-action 'none'"
    )
    heading = " · ".join(("Evaluation", *(visible(label) for label in labels(report))))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{html.escape(heading)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">To the figures</a>\n' + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _header(report: Report, known: Beside, has_rows: bool) -> str:
    created = f" · {text(day(report.created))}" if report.created else ""
    badge = ""
    if known.verdict:
        kind = "better" if known.verdict.passed else "worse"
        badge = f' <a class="badge {kind}" href="#gate">gate {told(known.verdict)}</a>'
    return (
        f'<header><p class="soft small">Evaluation{created}{badge}</p><h1>{text(headline(report))}</h1>'
        f'{_verdicts(report)}<nav aria-label="Sections">{"".join(_links(report, known, has_rows))}</nav></header>'
    )


def _links(report: Report, known: Beside, has_rows: bool) -> Iterator[str]:
    """The sections that the page has, in their order."""
    sections = {"gate": known.verdict, "stages": known.road}
    yield from (f'<a href="#{name}">{name}</a>' for name, there in sections.items() if there)
    yield from (f'<a href="#set-{at}">{text(name)}</a>' for at, name in enumerate(set_names(report)))
    below = {"tests": report.tests, "training": report.curves, "rows": has_rows, "models": report.models}
    yield from (f'<a href="#{name}">{name}</a>' for name, there in below.items() if there)


def _verdicts(report: Report) -> str:
    """A card for each model: what became of the main figure of every set."""
    first, sets, cards = labels(report)[:1], len(set_names(report)), []
    for model, found in findings(report).items():
        word = overall(found)
        against = f'<span class="soft">against {text(first[0])}</span>' if model != first[0] else ""
        badge = f'<span class="badge">{word}</span>' if word else ""
        items = "".join(_change(one, sets) for one in found) or '<li class="soft">nothing that could be compared</li>'
        kind = word if word in ("better", "worse", "mixed") else ""
        cards.append(f'<li class="verdict {kind}"><h3>{text(model)} {against}{badge}</h3><ul class="changes">{items}</ul></li>')
    return f'<ul class="{"verdicts many" if len(cards) > 3 else "verdicts"}">{"".join(cards)}</ul>'


def _change(one: Finding, sets: int) -> str:
    name = f"{text(one.set)} · " if sets > 1 else ""
    told = [signed(one.test.difference, one.after.unit), chance(one.test.p)] if one.test else []
    if not one.test and (bounds_of := spread(one.after.low, one.after.high, one.after.unit)):
        told = [bounds_of]
    mark = MARKS[one.standing]
    return (
        f'<li class="{one.standing}"><span class="what">{name}{text(title(one.metric))}</span>'
        f'<span class="how">{mark}{figures(change(one))}</span><span class="why">{figures(", ".join(told))}</span></li>'
    )


def _gate(known: Beside) -> Iterator[str]:
    if not known.verdict:
        return
    when = f" · {text(day(known.verdict.time))}" if known.verdict.time else ""
    yield f'<section><h2 id="gate">Gate</h2><p class="soft small">{told(known.verdict)}{when}</p>'
    rows = [check_cells(check) for check in known.verdict.requirements]
    kinds = ["better" if check.passed else "worse" for check in known.verdict.requirements]
    yield from (*_table(("result", *CHECKS[1:]), rows, (3, 4), kinds), "</section>")


def _stages(known: Beside) -> Iterator[str]:
    if known.road:
        yield '<section><h2 id="stages">Stages</h2><p class="soft small">What each stage gained, and what it cost.</p>'
        yield from (*_table(STAGES, list(stages(known.road)), range(3, len(STAGES))), "</section>")


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int], kinds: Sequence[str] = ()
) -> Iterator[str]:
    """A plain table; ``kinds`` are of the first cell of each row."""
    style = ['class="n"' if at in right else "" for at in range(len(heads))]
    yield f'{OPEN}<table class="stack"><thead><tr>'
    yield "".join(f'<th scope="col" {style[at]}>{html.escape(head)}</th>' for at, head in enumerate(heads))
    yield "</tr></thead><tbody>"
    for number_of, row in enumerate(rows):
        kind = f'class="delta {kinds[number_of]}"' if kinds else ""
        yield "<tr>"
        for at, words in enumerate(row):
            shown = figures(words) if at in right else text(words)
            yield f'<td data-label="{heads[at]}" {style[at] if at else kind}>{shown if words else ""}</td>'
        yield "</tr>"
    yield "</tbody></table></div>"


def _sets(report: Report) -> Iterator[str]:
    known = {one.name: one for one in report.sets}
    for at, name in enumerate(set_names(report)):
        anchor = ' id="main"' if at == 0 else ""
        facts = f"{text(known[name].kind)}, {known[name].rows:,} rows · {text(known[name].path)}" if name in known else ""
        yield f'<section{anchor}><h2 id="set-{at}">{text(name)}</h2><p class="soft small">{facts}</p>'
        columns = [label for label in labels(report) if report.results.get(label, {}).get(name)]
        if not columns:
            yield '<p class="soft">Nothing was measured.</p></section>'
            continue
        yield f'{OPEN}<table class="figures stack"><thead><tr><th scope="col">metric</th>'
        for label in columns:
            yield f'<th scope="col" style="{_colour(report, label)}"><span class="dot"></span>{text(label)}</th>'
        yield "</tr></thead><tbody>"
        for metric, better in metrics_of(report, name).items():
            sign, words = ARROWS.get(better, ("", ""))
            way = f' <span class="way" title="{words}">{sign}<span class="hidden"> {words}</span></span>' if sign else ""
            values = [figure(report, label, name, metric) for label in columns]
            span = bounds([value for value in values if value is not None])
            cells = "".join(_cell(report, label, name, metric, span) for label in columns)
            yield f'<tr><th scope="row">{text(title(metric))}{way}</th>{cells}</tr>'
        yield "</tbody></table></div></section>"


def _colour(report: Report, label: str) -> str:
    return f"--c:var(--c{labels(report).index(label) % 8})"


def _cell(report: Report, label: str, name: str, metric: str, span: tuple[float, float]) -> str:
    value = figure(report, label, name, metric)
    shown = html.escape(visible(label), quote=True)
    if value is None:
        return f'<td data-label="{shown}"></td>'
    why = f'<span class="bounds">{text(value.why)}</span>' if value.why else ""
    if value.value is None:
        return f'<td data-label="{shown}"><div><span class="value">–</span>{why}</div></td>'
    first = labels(report)[0]
    test = find_test(report, label, first, name, metric) if label != first else None
    kind = standing(test, value)
    mark = MARKS[kind]
    unit = value.unit if value.unit == "bytes" else ""
    delta = f'<span class="delta">{mark}{figures(signed(test.difference, unit))}</span>' if test else ""
    rows = {one.name: one.rows for one in report.sets}.get(name)
    facts = [spread(value.low, value.high, value.unit), f"n={value.n:,}" if value.n not in (0, rows) else ""]
    told = figures(" · ".join(one for one in facts if one))
    return (
        f'<td class="{kind}" data-label="{shown}" style="{_colour(report, label)}"><div>'
        f'<span class="value" title="{value.value!r}">{figures(number(value.value, value.unit))}</span>{delta}'
        f'{whisker(value, span)}<span class="bounds">{told}</span>{why}</div></td>'
    )


def _tests(report: Report) -> Iterator[str]:
    if not report.tests:
        return
    yield '<section><h2 id="tests">Paired tests</h2><p class="soft small">The same rows for both models: the difference '
    yield "with its 95&nbsp;% bootstrap interval, and a two-sided p that is not corrected for the number of tests.</p>"
    heads = ("set", "metric", "model", "against")
    shown = " open" if len(report.tests) <= MANY else ""
    yield f'<details class="fold"{shown}><summary>{len(report.tests):,} tests</summary>{OPEN}<table class="stack"><thead><tr>'
    yield "".join(f'<th scope="col">{one}</th>' for one in heads)
    right = ("difference", "95&nbsp;% interval", "p", "rows")
    yield "".join(f'<th scope="col" class="n">{one}</th>' for one in right) + "</tr></thead><tbody>"
    yield from (_test(report, test) for test in report.tests)
    yield "</tbody></table></div></details></section>"


def _test(report: Report, test: Test) -> str:
    value = figure(report, test.model, test.set, test.metric) or Value(value=None)
    kind = standing(test, value)
    names = (("set", test.set), ("metric", title(test.metric)), ("model", test.model), ("against", test.against))
    cells = "".join(f'<td data-label="{name}">{text(words)}</td>' for name, words in names)
    mark = MARKS[kind]
    told = (
        ("difference", mark + signed(test.difference, value.unit)),
        ("interval", spread(test.low, test.high, value.unit)),
        ("p", chance(test.p)),
        ("rows", f"{test.n:,}"),
    )
    style = {"difference": f"n delta {kind}"}
    return (
        f"<tr>{cells}"
        + "".join(f'<td class="{style.get(n, "n")}" data-label="{n}">{figures(w)}</td>' for n, w in told)
        + "</tr>"
    )


def _curves(report: Report) -> Iterator[str]:
    known = labels(report)
    drawn = [
        curve(label, points, known.index(label) if label in known else len(known)) for label, points in report.curves.items()
    ]
    if any(drawn):
        yield '<section><h2 id="training">Training</h2><p class="soft small">Loss over the steps of each training run.</p>'
        yield f'<div class="charts">{"".join(drawn)}</div></section>'


def _models(report: Report) -> Iterator[str]:
    if not report.models:
        return
    style = {"size": ' class="n"', "hash": ' class="mono"'}
    yield f'<section><h2 id="models">Models</h2>{OPEN}<table class="stack"><thead><tr>'
    yield "".join(f'<th scope="col"{style.get(name, "")}>{name}</th>' for name in FIELDS) + "</tr></thead><tbody>"
    for one in report.models:
        size = number(one.size, "bytes") if one.size else ""
        shown = (one.label, one.kind, one.stage, one.name, one.family, size, one.hash[:12], one.run)
        cells = zip(FIELDS, shown, strict=True)
        yield "<tr>"
        yield from (
            f'<td data-label="{name}"{style.get(name, "")}>{text(words) if words else ""}</td>' for name, words in cells
        )
        yield "</tr>"
    yield "</tbody></table></div></section>"


def _notes(report: Report) -> Iterator[str]:
    if report.notes:
        yield '<section><h2>Notes</h2><ul class="notes">'
        yield from (f"<li>{text(note)}</li>" for note in report.notes)
        yield "</ul></section>"
    if report.settings:
        settings = html.escape(visible(json.dumps(report.settings, indent=1, ensure_ascii=False)))
        yield f'<details class="settings"><summary>Settings</summary><pre>{settings}</pre></details>'


def _footer(report: Report) -> str:
    sets = len(set_names(report))
    told = "; ".join(f"{model}: {sentence(found, sets)}" for model, found in findings(report).items() if found)
    version = f" {html.escape(visible(report.mlxforge))}" if report.mlxforge else ""
    about = f"Written by mlxforge{version}. Intervals are 95&nbsp;%, by bootstrap over rows."
    return f'<footer><p class="figure">{text(told)}</p><p>{about}</p></footer>'
