"""``mlxforge export peft``."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from mlxforge.cli.shaping import JSON, show_json, show_next


@click.command()
@click.argument("run", required=False)
@click.option("-m", "--model", metavar="MODEL", help="The base of --adapter: 'tiny', a folder, or a hub id.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of an adapter; several become one.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.")
@click.option("--base", "named", metavar="NAME", help="The base as PEFT is to load it, where that is another one than here.")
@click.option("--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder with the runs.")
@click.option("--force", is_flag=True, help="Replace a PEFT adapter that is there already.")
@JSON
def peft(
    run: str | None,
    model: str | None,
    adapters: tuple[Path, ...],
    output: Path,
    named: str | None,
    runs_dir: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Write an adapter as PEFT reads it: adapter_model.safetensors and adapter_config.json.

    \b
    mlxforge export peft last -o peft
    mlxforge export peft --model Qwen/Qwen3-0.6B --adapter runs/answers -o peft
    mlxforge export peft packed-run -o peft --base Qwen/Qwen3-0.6B

    RUN is a name, run:NAME, a path, or 'last'. The tokenizer and the chat template of training lie beside it. An adapter that
    PEFT has no words for (whole weights, experts) is refused: fuse it.
    """
    from mlxforge.runs.export_peft import export_peft
    from mlxforge.runs.opening import subject
    from mlxforge.ui.talk import status

    # A polite kill leaves nothing half-written either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = subject(run, model, adapters, runs_dir)
    with status(f"writing {output}"):
        result = export_peft(base, output, named=named, force=force)
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
