"""``mlxforge runs rm`` and ``mlxforge runs clean``: room on the disk."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.runs import FOLDER
from mlxforge.cli.shaping import JSON, show_json, some

if TYPE_CHECKING:
    from mlxforge.runs.clean import Doomed

YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
DRY = click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}  # no m: minutes to one are months to another
LENGTH = re.compile(r"[0-9]+(\.[0-9]+)?[hdw]")


class Age(click.ParamType):  # type: ignore[type-arg]
    """A length of time, as it is written: ``30d``, ``12h``, ``2w``."""

    name = "age"
    examples = ("30d", "12h", "2w")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, if it is one."""
        if not LENGTH.fullmatch(str(value)):
            self.fail(f"'{value}' is no length of time: give 30d, 12h or 2w.", param, ctx)
        return str(value)


def seconds(age: str) -> float:
    """``2w`` in seconds."""
    return float(age[:-1]) * SECONDS[age[-1]]


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@FOLDER
@click.option("--force", is_flag=True, help="Runs that others descend from too.")
@DRY
@YES
@JSON
def rm(names: tuple[str, ...], runs_dir: Path, force: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove runs: their records, weights and checkpoints, for good.

    A live run is never removed, nor one that others descend from, unless --force. What was fused or exported stays.
    """
    from mlxforge.runs.clean import removal

    _go(removal(names, runs_dir, force=force), [], dry_run, yes, as_json)


@click.command()
@FOLDER
@click.option("--keep-best", is_flag=True, help="Of finished runs keep the best checkpoint alone, not the last one too.")
@click.option("--failed", is_flag=True, help="Whole runs that failed, too.")
@click.option("--older-than", type=Age(), metavar="AGE", help="Only of runs that ended so long ago: 30d, 12h, 2w.")
@DRY
@YES
@JSON
def clean(
    runs_dir: Path, keep_best: bool, failed: bool, older_than: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove checkpoints that are neither best nor last, and what killed processes left unfinished.

    \b
    mlxforge runs clean --dry-run
    mlxforge runs clean --keep-best --older-than 30d --yes

    Every run keeps its adapter, and every run that can go on goes on. Checkpoints that another run began from stay.
    """
    from mlxforge.runs.clean import litter

    age = None if older_than is None else seconds(older_than)
    _go(*litter(runs_dir, keep_best=keep_best, failed=failed, older_than=age), dry_run, yes, as_json)


def _go(found: Sequence[Doomed], notes: Sequence[str], dry_run: bool, yes: bool, as_json: bool) -> None:
    """Shows what would go, asks, removes it, and says what that freed."""
    import msgspec

    from mlxforge.runs.clean import remove
    from mlxforge.ui.units import size

    for one in found:
        why = f"  {one.why}" if one.why else ""
        click.echo(f"{size(one.bytes):>9}  {one.what:<10}  {one.path}{why}", err=True)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if found and not dry_run and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("this asks before it removes, and nobody can answer here: give --yes or --dry-run")
        total = size(sum(one.bytes for one in found))
        click.confirm(f"remove {'this' if len(found) == 1 else f'these {len(found)}'} ({total})?", abort=True, err=True)
    freed = 0 if dry_run else remove(found)
    if as_json:
        removed = msgspec.to_builtins(list(found))
        show_json({"dry_run": dry_run, "removed": removed, "freed": freed, "notes": list(notes)})
    elif not found:
        click.echo("nothing to remove")
    elif dry_run:
        click.echo(f"would free {size(sum(one.bytes for one in found))}")
    else:
        click.echo(f"removed {some(len(found), 'thing')}, {size(freed)} freed")
