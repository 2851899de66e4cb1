"""``mlxforge fuse``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlxforge.cli.shaping import JSON, Number, show_json, show_next, some
from mlxforge.cli.subject import FOLDER, subject

if TYPE_CHECKING:
    from mlxforge.runs.opening import Base


@click.command()
@subject
@FOLDER
@click.option("--dequantize/--requantize", default=True, help="What a packed base becomes: floats, or packed again.")
@click.option("--max-shard-size", type=Number(0, min_open=True), default=5.0, show_default=True, help="GB a file.")
@click.option("--force", is_flag=True, help="Replace a model folder that is there already.")
@JSON
def fuse(
    base: Callable[[], Base],
    output: Path,
    dequantize: bool,
    max_shard_size: float,
    force: bool,
    as_json: bool,
) -> None:
    """Merge an adapter into its base: one model folder, in the base's own layout and names.

    \b
    mlxforge fuse last -o fused
    mlxforge fuse --model Qwen/Qwen3-0.6B --adapter runs/answers -o fused
    mlxforge fuse --model tiny --adapter cpt/ --adapter sft/ -o fused

    RUN is a name, NAME@STEP, a path, or 'last'. Tensors that the adapter does not change stay as they are, byte for byte.
    """
    # The products of an update are thin: more threads would wait for each other. It must be set before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from mlxforge.runs.fuse import fuse as merge
    from mlxforge.ui.bars import bars

    with bars() as emit:
        limit = max(1, int(max_shard_size * 1e9))
        result = merge(base(), output, dequantize=dequantize, max_shard_size=limit, force=force, emit=emit)
    if as_json:
        show_json(result)
        return
    size = f"{some(result['shards'], 'file')}, {result['bytes'] / 1e6:,.1f} MB, weights {result['packing']}"
    what = f"{result['kind']} over {result['base']}, {result['changed']:,} of {some(result['tensors'], 'tensor')} changed"
    click.echo(f"wrote {output}: {what}; {size}")
    if result.get("error") is not None:
        click.echo(f"packed again: mean error {result['error']:.2f} times the mean change")
    folder, file = shlex.quote(str(output)), shlex.quote(f"{output.name}.gguf")
    show_next([f"mlxforge chat --model {folder}", f"mlxforge export gguf {folder} -o {file}"])
