"""``mlxforge verify``, and how a verification is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mlxforge.cli.shaping import JSON, show_json


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--against", required=True, metavar="RUN|MODEL", help="What the file was made of: a run, 'last', or a model.")
@click.option("--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder with the runs.")
@JSON
def verify(file: Path, against: str, runs_dir: Path, as_json: bool) -> None:
    """Hold a GGUF file against the run or model it was made of, in real llama.cpp.

    \b
    mlxforge verify answers.q4_k_m.gguf --against answers
    mlxforge verify model.gguf --against Qwen/Qwen3-0.6B

    Token ids, chat prompts, stop tokens, tensors and answers are compared; the report goes beside the file. A failed check
    exits 1. The file keeps its name. Needs the extra 'gguf'.
    """
    from mlxforge.runs.opening import subject
    from mlxforge.runs.verify import check_passed, verify_file
    from mlxforge.ui.bars import bars

    base = subject(against, None, None, runs_dir)
    with bars() as emit:
        found = verify_file(file, base, emit=emit)
    if as_json:
        show_json(found)
    else:
        show_checks(file, found)
    check_passed(file, found)


def show_checks(file: Path, found: Mapping[str, Any]) -> None:
    """A table of the checks of one file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=str(file), title_justify="left", title_style="bold", pad_edge=False)
    for heading, justify in (("check", "left"), ("", "left"), ("value", "right"), ("limit", "right"), ("", "left")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for check in found["checks"]:
        word, style = WORDS[check["passed"]]
        table.add_row(
            check["name"], f"[{style}]{word}[/]", number(check["value"]), number(check["limit"]), text(check["detail"])
        )
    Console(highlight=False).print(table)


WORDS = {True: ("passed", "green"), False: ("FAILED", "bold red"), None: ("not checked", "yellow")}


def number(value: float | None) -> str:
    """``0.0054``, ``1e-05``; empty for none."""
    return "" if value is None else f"{value:.4g}"


def text(detail: str) -> Any:
    """A detail as it is: brackets are no markup in it."""
    from rich.text import Text

    return Text(detail)
