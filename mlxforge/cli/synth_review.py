"""``mlxforge synth review``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.shaping import JSON, edited, heading, show_json, show_next, some

if TYPE_CHECKING:
    from mlxforge.runs.review import Review


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--kb", type=click.Path(path_type=Path), metavar="KB", help="The knowledge base that the rows of FILE came from.")
@click.option("--only", type=click.Choice(("accepted", "rejected")), help="Of a knowledge base: what the gates said.")
@click.option("--again", is_flag=True, help="Show rows that were reviewed before too.")
@click.option("--list", "listed", type=click.IntRange(min=1), metavar="N", help="Print the first N rows instead of asking.")
@JSON
def review(file: Path, kb: Path | None, only: str | None, again: bool, listed: int | None, as_json: bool) -> None:
    """Look at made rows one by one, and accept, edit or reject them.

    \b
    mlxforge synth review kb.sqlite
    mlxforge synth review kb.sqlite --only rejected
    mlxforge synth review sft.jsonl --kb kb.sqlite

    FILE is a knowledge base, whose jobs keep their rows and what the gates refused, or a file of JSON lines. Each row is shown
    with the text it came from. Keys: a accept, e edit (in $EDITOR), r reject, s skip, b back, j and k scroll, q quit. What is
    said is kept at once, and the next review begins at the first row without it. A rejected row stays where it is, marked:
    training leaves it out.
    """
    from mlxforge.runs.review import open_review

    with open_review(file, kb, only=only, again=again) as sitting:
        if listed and not as_json:
            _list(sitting, listed)
        elif not as_json:
            _look(sitting)
        result = _result(sitting)
        if listed:
            result["listed"] = [asdict(sitting[number]) for number in range(min(listed, len(sitting)))]
    if as_json:
        show_json(result)
    elif not listed:
        _show(file, result)
        if result["stored"]:
            show_next(["the synth command again, which writes the accepted rows as they are now"])


def _look(sitting: Review) -> None:
    from mlxforge.core.errors import ConfigError
    from mlxforge.ui.listen import can_draw
    from mlxforge.ui.review import Reviewer

    if not (sys.stdin.isatty() and can_draw(sys.stdout)):
        raise ConfigError(
            "needs a terminal that shows UTF-8", where="mlxforge synth review", fix="--list 20 prints rows instead"
        )
    Reviewer(sitting, lambda text: edited(text, ".json")).run()


def _list(sitting: Review, most: int) -> None:
    from mlxforge.ui.review import PAST, row_text

    for number in range(min(most, len(sitting))):
        row = sitting[number]
        said = PAST[row.reviewed] if row.reviewed else row.verdict
        click.echo(heading(" · ".join(part for part in (row.place, said, row.reason) if part)))
        click.echo("\n".join(f"  {line}".rstrip() for line in row_text(row.values).plain.splitlines() if line.strip()))
        passage = sitting.passage(row)
        if passage.text:
            begin, end = passage.span if any(passage.span) else (0, len(passage.text))
            click.echo(f"  from {passage.place}: {' '.join(passage.text[begin:end].split())}")
        click.echo()


def _result(sitting: Review) -> dict[str, Any]:
    said = sitting.said()
    named = {"accepted": said["accept"], "edited": said["edit"], "rejected": said["reject"]}
    return {"rows": len(sitting.rows), **named, "open": said[""], "stored": sitting.stored}


def _show(file: Path, result: dict[str, Any]) -> None:
    told = ", ".join(f"{count:,} {name}" for name, count in list(result.items())[1:4])
    click.echo(f"{file}: {some(result['rows'], 'row')}: {told}, {result['open']:,} not reviewed")
