"""``mlxforge gate``: a report held to requirements, for scripts and CI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mlxforge.cli.shaping import JSON, Number, show_json


@click.command()
@click.argument("report", type=click.Path(path_type=Path))
@click.option("--require", multiple=True, metavar="FIGURE>=N", help="'LABEL.METRIC>=N' or 'LABEL.SET.METRIC>=N'; >= <= > < ==.")
@click.option("--no-regression", multiple=True, metavar="SET.METRIC:N", help="Worse by N at most, or by N%. Repeatable.")
@click.option("--against", metavar="LABEL", help="What --no-regression compares with; the first model unless said.")
@click.option(
    "--confidence", type=Number(0.5, 0.9999), default=0.95, show_default=True, help="Level of the intervals, all two-sided."
)
@click.option("--strict", is_flag=True, help="The whole interval must meet each requirement, not the value.")
@click.option("--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder with the runs.")
@JSON
def gate(
    report: Path,
    require: tuple[str, ...],
    no_regression: tuple[str, ...],
    against: str | None,
    confidence: float,
    strict: bool,
    runs_dir: Path,
    as_json: bool,
) -> int:
    """Hold the REPORT of mlxforge eval to requirements: exit 0 where all are met, 1 where one is not.

    \b
    mlxforge gate report/ --require 'sft.exact_match>=0.6'
    mlxforge gate report/ --require 'sft.exact_match>=0.6' --no-regression retention.bpb:0.02

    A --require is met where the value meets it. A --no-regression fails where the interval of the paired difference lies
    beyond the tolerance as a whole; it is about the models that --require names, else about the last one. What an interval
    leaves open passes as "within noise", unless --strict. The verdict goes to gate.json beside the report and into the
    runs that it is about.
    """
    from mlxforge.runs.gate import gate as held

    found = held(report, require, no_regression, against=against, confidence=confidence, strict=strict, runs_dir=runs_dir)
    if as_json:
        show_json(found)
    else:
        show_gate(found)
    for note in found["notes"]:
        click.echo(f"note: {note}", err=True)
    return 0 if found["passed"] else 1


def show_gate(found: Mapping[str, Any]) -> None:
    """A table of the checks, or a line each where the output is no terminal; then the verdict."""
    from mlxforge.ui.report import show_checks

    show_checks(found["requirements"], bool(found["passed"]))
