"""``mlxforge init``."""

from __future__ import annotations

from pathlib import Path

import click

from mlxforge.cli.shaping import JSON, show_json, show_next


@click.command()
@click.argument("name", type=click.Path(path_type=Path))
@click.option("--example", metavar="EXAMPLE", help="A complete small project: handbook.")
@click.option("--from-run", metavar="RUN", help="A project that reproduces a run, and those that it was trained on.")
@click.option("-m", "--model", metavar="MODEL", help="The base: 'tiny', a folder, or a hub id. [default: tiny, or the run's]")
@click.option("--copy", is_flag=True, help="With --from-run: bring the run's data into the folder.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder that holds the runs."
)
@JSON
def init(
    name: Path, example: str | None, from_run: str | None, model: str | None, copy: bool, runs_dir: Path, as_json: bool
) -> None:
    """Make a project folder: documents, data, configs, runs, exports, and a forge.yaml that says what is done.

    \b
    mlxforge init manual --model mlx-community/Qwen3-0.6B-4bit
    mlxforge init handbook --example handbook
    mlxforge init again --from-run answers

    NAME is a new folder. Then: mlxforge pipeline NAME.
    """
    from mlxforge.runs.new_project import new_project

    result = new_project(name, example=example, from_run=from_run, model=model, copy=copy, runs_dir=runs_dir)
    if as_json:
        show_json(result)
        return
    click.echo(f"made {result['file']}: {', '.join(result['stages'])}")
    show_next(result["next"])
