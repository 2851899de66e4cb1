"""``mlxforge runs``: what was run, what came out, how runs compare, and room on the disk."""

from __future__ import annotations

from pathlib import Path

import click

from mlxforge.cli.lazy import Commands, Table

COMMANDS: Table = {
    "list": ("mlxforge.cli.runs_list", "List all runs, or where each came from."),
    "show": ("mlxforge.cli.runs_look", "Show what a run was given and what came out."),
    "compare": ("mlxforge.cli.runs_compare", "Hold runs side by side: settings, figures, curves."),
    "last": ("mlxforge.cli.runs_look", "Print the name of the newest run that is finished, for scripts."),
    "watch": ("mlxforge.cli.runs_look", "Watch a live run from another terminal."),
    "plot": ("mlxforge.cli.runs_look", "Draw the curves of a run into a file."),
    "rm": ("mlxforge.cli.runs_clean", "Remove runs."),
    "clean": ("mlxforge.cli.runs_clean", "Remove checkpoints that nothing needs, and what killed processes left."),
}
FOLDER = click.option(
    "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder that holds the runs."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
RUN = click.argument("run", default="last")


@click.group(cls=Commands, table=COMMANDS)
def runs() -> None:
    """List, show, compare, watch, plot and remove training runs.

    RUN is a name, a path, or 'last' for the newest.
    """
