"""The rows of a report's page: the worst ones in full, as data for the page's script, and the tools to search them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mlxforge.evals.figures import labels, set_names
from mlxforge.evals.regressions import Line, Rows, signs, worst
from mlxforge.evals.report import ROWS, Report

SHOWN = 300  # rows that the page holds
ROOM = 2_000_000  # bytes of rows that it holds
LONGEST = 6_000  # characters of one text of a row
CHOICES = {
    "show": {"": "all", "worse": "worse", "better": "better", "same": "equal"},
    "marks": {"model": "other model", "reference": "reference", "": "none"},
    "order": {"worst": "worst first", "best": "best first", "row": "by number"},
}


def shown_rows(report: Report, rows: Rows) -> Iterator[dict[str, Any]]:
    """The worst rows in full, as many as there is room for."""
    room = ROOM
    for (name, row), lines in zip(keys := list(worst(report, rows))[:SHOWN], rows.read(keys), strict=True):
        one = _row(name, row, lines)
        room -= len(json.dumps(one, ensure_ascii=False).encode("utf-8", "replace"))
        if room < 0:
            return
        yield one


def _row(name: str, row: int, lines: dict[str, Line]) -> dict[str, Any]:
    first = next(iter(lines.values()))
    answers = {}
    for label, line in lines.items():
        scores = {metric: score for metric, score in line.scores.items() if score is not None}
        answers[label] = {"text": _cut(line.answer), "finish": line.finish, "scores": scores, "context": _cut(line.context)}
        if line.judge:
            answers[label]["judge"] = _cut(line.judge)
        if line.prompt != first.prompt:
            answers[label]["prompt"] = _cut(line.prompt)
    told = {"prompt": _cut(first.prompt), "reference": _cut(first.reference), "source": _cut(first.source)}
    return {"set": name, "row": row, **told, "answers": answers}


def _cut(value: Any) -> Any:
    """Texts of a value that are too long, shortened; how much is missing is said in them."""
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]}… [{len(value) - LONGEST:,} characters more in {ROWS}]"
    if isinstance(value, list):
        return [_cut(one) for one in value]
    return {key: _cut(one) for key, one in value.items()} if isinstance(value, dict) else value


def as_json(report: Report, shown: list[dict[str, Any]]) -> str:
    """JSON that no HTML parser sees an end in."""
    known = {label for row in shown for label in row["answers"]}
    names = list(dict.fromkeys([*set_names(report), *(row["set"] for row in shown)]))
    models = [label for label in labels(report) if label in known]
    models += sorted(known - set(models))
    kept = {
        "models": models,
        "sets": [name for name in names if any(row["set"] == name for row in shown)],
        "signs": {name: signs(report, name) for name in names},
        "rows": shown,
    }
    plain = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()
    for letter in "<>&\u2028\u2029":
        plain = plain.replace(letter, f"\\u{ord(letter):04x}")
    return plain


def explorer(total: int, shown: int) -> Iterator[str]:
    """The tools and the empty list that the script fills with ``shown`` of ``total`` rows."""
    every = f"All {total:,} rows" if shown == total else f"The {shown:,} worst of {total:,} rows"
    rest = "" if shown == total else f" The others are in <code>{ROWS}</code> beside this page."
    yield f'<section><h2 id="rows">Rows</h2><p class="soft small">{every}, worst regression first: of any model against the '
    yield f"first one, and against the one before it.{rest} "
    yield "<kbd>/</kbd> searches, <kbd>j</kbd> and <kbd>k</kbd> go on and back.</p>"
    yield '<noscript><p>Rows are shown by a script of this page.</p></noscript><div class="tools" role="search">'
    yield '<label class="grow">search<input type="search" id="search" autocomplete="off" spellcheck="false"></label>'
    yield from (f'<label>{name}<select id="{name}"></select></label>' for name in ("set", "model", "against"))
    for name, choices in CHOICES.items():
        options = "".join(f'<option value="{value}">{words}</option>' for value, words in choices.items())
        yield f'<label>{name}<select id="{name}">{options}</select></label>'
    yield '</div><p class="soft small" id="count" role="status"></p><div id="list"></div>'
    yield '<button id="more" type="button" hidden></button></section>'
