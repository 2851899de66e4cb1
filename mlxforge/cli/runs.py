"""``mlxforge runs``: what was run, what came out, and a look at a run from another terminal."""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = click.option(
    "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder that holds the runs."
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@click.group()
def runs() -> None:
    """List, show, watch and plot runs.

    RUN is a name, a path, or 'last' for the newest.
    """


@runs.command("list")
@FOLDER
@JSON
def list_(runs_dir: Path, as_json: bool) -> None:
    """List all runs, the newest last."""
    from mlxforge.runs import record

    found = record.list_runs(runs_dir)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found))
    elif not found:
        click.echo(f"no runs in {runs_dir}: 'mlxforge cpt' makes one")
    else:
        from mlxforge.ui.tables import print_runs

        print_runs([one.__rich_repr__() for one in found] if False else found)


@runs.command()
@click.argument("run")
@FOLDER
@JSON
def show(run: str, runs_dir: Path, as_json: bool) -> None:
    """Show what a run was given and what came out.

    Settings that differ from the defaults, result, lineage and files.
    """
