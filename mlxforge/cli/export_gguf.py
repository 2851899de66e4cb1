"""``mlxforge export gguf``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.shaping import FORCE, JSON, show_json, show_next, some
from mlxforge.cli.subject import DEFAULT_QUANT, QUANT, VERIFY, subject

if TYPE_CHECKING:
    from mlxforge.runs.opening import Base


@click.command()
@subject
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write; of several --quant, the name that each is put into. NAME.QUANT.gguf unless said.",
)
@QUANT
@VERIFY
@FORCE
@JSON
def gguf(
    base: Callable[[], Base],
    output: Path | None,
    quants: tuple[str, ...],
    verify: bool | None,
    force: bool,
    as_json: bool,
) -> None:
    """A GGUF file for llama.cpp and what builds on it, verified by llama.cpp itself.

    \b
    mlxforge export gguf last
    mlxforge export gguf answers -o answers.gguf --quant f16
    mlxforge export gguf answers -o answers.gguf --quant f16 --quant q4_k_m
    mlxforge export gguf --model Qwen/Qwen3-0.6B --adapter runs/answers --quant q8_0

    RUN is a run, a model folder or a hub id; adapters are merged in float32. The checks compare token ids, chat prompts, stop
    tokens, tensors and answers with the model in MLX; the report lies beside the file. A file that fails one is named
    FILE.unverified, and the command exits 1.
    """
    from mlxforge.runs.export_gguf import export_gguf
    from mlxforge.runs.verify import NotVerified
    from mlxforge.ui.bars import bars

    try:
        with bars() as emit:
            result = export_gguf(base(), output, quants or (DEFAULT_QUANT,), verify=verify, force=force, emit=emit)
    except NotVerified as error:
        show(error.result, as_json)
        raise
    show(result, as_json)


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """What was written, and its checks."""
    from mlxforge.cli.verify import show_checks

    if as_json:
        show_json(result)
        return
    for file in result["files"]:
        if file["passed"] is not None:
            show_checks(Path(file["file"]), file)
    for file in result["files"]:
        types = ", ".join(f"{count} {kind}" for kind, count in file["types"].items())
        click.echo(f"wrote {file['file']}: {file['bytes'] / 1e6:,.1f} MB, {types}")
        if file["fallbacks"]:
            example = next(f"{name} {change}" for name, change in file["fallbacks"].items())
            click.echo(f"  {some(len(file['fallbacks']), 'tensor')} in another type, since their rows do not divide: {example}")
    for note in result["notes"]:
        click.echo(f"note: {note}")
    if result["unverified"]:
        click.echo(result["unverified"])
    if result["passed"] is not False:
        file = shlex.quote(result["files"][-1]["file"])
        show_next([f"llama-cli -m {file}", f"mlxforge eval {file} --data TEST.jsonl"])
