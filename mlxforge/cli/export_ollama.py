"""``mlxforge export ollama``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.export_gguf import show
from mlxforge.cli.shaping import JSON, show_json, show_next
from mlxforge.cli.subject import DEFAULT_QUANT, FOLDER, QUANT, VERIFY, subject

if TYPE_CHECKING:
    from mlxforge.runs.opening import Base


@click.command()
@subject
@FOLDER
@QUANT
@click.option("--name", metavar="NAME", help="The model's name in Ollama; the run's unless given.")
@click.option("--system", default="", metavar="TEXT", help="A system message for every conversation.")
@click.option(
    "--template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A Go template to use instead of the one made of the model's.",
)
@click.option("--lmstudio", is_flag=True, help="Lay the files out as LM Studio has them: publisher/model/file.gguf.")
@VERIFY
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@JSON
def ollama(
    base: Callable[[], Base],
    output: Path,
    quants: tuple[str, ...],
    name: str | None,
    system: str,
    template: Path | None,
    lmstudio: bool,
    verify: bool | None,
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
    from mlxforge.runs.verify import NotVerified
    from mlxforge.ui.bars import bars

    go = read_template(template) if template else None
    options: dict[str, Any] = {"name": name, "system": system, "go": go, "lmstudio": lmstudio}
    try:
        with bars() as emit:
            found = export_ollama(base(), output, quants or (DEFAULT_QUANT,), verify=verify, force=force, emit=emit, **options)
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
