"""``mlxforge export ollama``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from mlxforge.cli.export_gguf import DEFAULT, QUANTS, show
from mlxforge.cli.shaping import JSON, show_json, show_next


@click.command()
@click.argument("run", required=False)
@click.option("-m", "--model", metavar="MODEL", help="A model, or the base of --adapter: 'tiny', a folder, or a hub id.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of an adapter; several are merged in order.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.")
@click.option(
    "--quant",
    "quants",
    multiple=True,
    type=click.Choice(QUANTS, case_sensitive=False),
    help=f"Kind of numbers; several make several files. {DEFAULT} unless said.",
)
@click.option("--name", metavar="NAME", help="The model's name in Ollama; the run's unless given.")
@click.option("--system", default="", metavar="TEXT", help="A system message for every conversation.")
@click.option(
    "--template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A Go template to use instead of the one made of the model's.",
)
@click.option("--lmstudio", is_flag=True, help="Lay the files out as LM Studio has them: publisher/model/file.gguf.")
@click.option("--verify/--no-verify", default=None, help="Compare with llama.cpp; done where the extra 'gguf' is installed.")
@click.option("--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder with the runs.")
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@JSON
def ollama(
    run: str | None,
    model: str | None,
    adapters: tuple[Path, ...],
    output: Path,
    quants: tuple[str, ...],
    name: str | None,
    system: str,
    template: Path | None,
    lmstudio: bool,
    verify: bool | None,
    runs_dir: Path,
    force: bool,
    as_json: bool,
) -> None:
    """A folder for Ollama: GGUF, and a Modelfile with the template of training.

    \b
    mlxforge export ollama last -o answers
    mlxforge export ollama answers -o answers --quant q4_k_m --quant q8_0 --system "Answer in one sentence."

    RUN is a run, a model folder or a hub id. Ollama does not read the Jinja template of a GGUF, so it is written in Go's form,
    after both have rendered the same conversations the same. What cannot be written so is refused.
    """
    from mlxforge.export.ollama import LM_STUDIO
    from mlxforge.models.detect import read_template
    from mlxforge.runs.export_ollama import export_ollama
    from mlxforge.runs.opening import subject
    from mlxforge.runs.verify import NotVerified
    from mlxforge.ui.bars import bars

    # A polite kill leaves nothing half-written either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = subject(run, model, adapters, runs_dir)
    go = read_template(template) if template else None
    options: dict[str, Any] = {"name": name, "system": system, "go": go, "lmstudio": lmstudio}
    try:
        with bars() as emit:
            found = export_ollama(base, output, quants or (DEFAULT,), verify=verify, force=force, emit=emit, **options)
    except NotVerified as error:
        show(error.result, as_json)
        raise
    if as_json:
        show_json(found)
        return
    for one, written in zip(found["models"], found["gguf"]["files"], strict=True):
        beside = f" and {one['modelfile']}" if one["modelfile"] else ""
        proof = f", verified: {written['report']}" if written["passed"] else ""
        click.echo(f"wrote {one['file']}{beside}{proof}")
    if lmstudio:
        publisher = Path(found["models"][0]["file"]).parent.parent
        click.echo(f"LM Studio looks for models in {LM_STUDIO}: copy the folder {publisher} there")
    show_next([command for one in found["models"] if one["modelfile"] for command in (one["create"], one["run"])])
