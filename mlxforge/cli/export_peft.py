"""``mlxforge export peft``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlxforge.cli.shaping import JSON, show_json, show_next
from mlxforge.cli.subject import FOLDER, subject

if TYPE_CHECKING:
    from mlxforge.runs.opening import Base


@click.command()
@subject
@FOLDER
@click.option("--base", "named", metavar="NAME", help="The base as PEFT is to load it, where that is another one than here.")
@click.option("--force", is_flag=True, help="Replace a PEFT adapter that is there already.")
@JSON
def peft(
    base: Callable[[], Base],
    output: Path,
    named: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write an adapter as PEFT reads it: adapter_model.safetensors and adapter_config.json.

    \b
    mlxforge export peft last -o peft
    mlxforge export peft --model Qwen/Qwen3-0.6B --adapter runs/answers -o peft
    mlxforge export peft packed-run -o peft --base Qwen/Qwen3-0.6B

    RUN is a name, NAME@STEP, a path, or 'last'. The tokenizer and the chat template of training lie beside it. An adapter that
    PEFT has no words for (whole weights, experts) is refused: fuse it.
    """
    from mlxforge.runs.export_peft import export_peft
    from mlxforge.ui.talk import status

    with status(f"writing {output}"):
        result = export_peft(base(), output, named=named, force=force)
    if as_json:
        show_json(result)
        return
    size = f"{result['tensors']} tensors, {result['bytes'] / 1e6:,.1f} MB"
    click.echo(f"wrote {output}: {result['kind']}, r {result['r']}, alpha {result['lora_alpha']:g}, {size}")
    click.echo(f"base: {result['base']}")
    show_next(
        [
            f"mlxforge chat --model {output}",
            f"python -c \"from peft import AutoPeftModelForCausalLM as M; M.from_pretrained('{output}')\"",
        ]
    )
