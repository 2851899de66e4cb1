"""``mlxforge export mlx``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlxforge.cli.shaping import JSON, show_json, show_next, some
from mlxforge.cli.subject import FOLDER, subject

if TYPE_CHECKING:
    from mlxforge.runs.opening import Base


@click.command()
@subject
@FOLDER
@click.option("--q-bits", type=int, help="Bits a weight; 4 unless said.")
@click.option("--q-group-size", type=int, help="Weights that share a scale; 64 unless said.")
@click.option("--q-mode", default="affine", show_default=True, metavar="MODE", help="affine, mxfp4, mxfp8 or nvfp4.")
@click.option("--force", is_flag=True, help="Replace a model folder that is there already.")
@JSON
def mlx(
    base: Callable[[], Base],
    output: Path,
    q_bits: int | None,
    q_group_size: int | None,
    q_mode: str,
    force: bool,
    as_json: bool,
) -> None:
    """A quantized folder for MLX: small, and read by mlx-lm and mlxforge.

    \b
    mlxforge export mlx last -o answers-4bit
    mlxforge export mlx answers -o answers-8bit --q-bits 8 --q-group-size 32

    RUN is a run, a model folder or a hub id. Adapters are merged in float32, then every layer is packed; what that changed is
    said, and measured on three short texts.
    """
    from mlxforge.runs.export_mlx import export_mlx
    from mlxforge.ui.bars import bars

    with bars() as emit:
        result = export_mlx(base(), output, bits=q_bits, group_size=q_group_size, mode=q_mode, force=force, emit=emit)
    if as_json:
        show_json(result)
        return
    before, after = (f"{result[key] / 1e6:,.1f} MB" for key in ("before", "after"))
    click.echo(f"wrote {output}: {some(result['layers'], 'layer')} in {result['packing']}")
    click.echo(f"{before} became {after}, {result['bits_per_weight']:.2f} bits a weight; mean error {result['error']:.1%}")
    if result["kl"] is not None:
        perplexity = f"perplexity {result['perplexity_before']:.2f} became {result['perplexity_after']:.2f}"
        click.echo(f"on three short texts: KL divergence {result['kl']:.4f} a token, {perplexity}")
    show_next([f"mlxforge chat --model {output}", f'mlx_lm.generate --model {output} --prompt "Hello"'])
