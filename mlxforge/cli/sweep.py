"""``mlxforge sweep``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.shaping import JSON, show_json, show_next

if TYPE_CHECKING:
    from mlxforge.runs.sweep import Sweep, SweepResult

LAST = "last"
OBJECTIVE = click.argument("objective", required=False, metavar="[OBJECTIVE]")
CONFIG = click.option("-c", "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="YAML file of settings.")
SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, by its YAML key: --set epochs=1."
)


def settings_of(objective: str | None, file: Path | None, assignments: tuple[str, ...], **named: Any) -> tuple[str, Any]:
    """The objective, and its settings by file and ``--set``; ``named`` ones count where they are not None."""
    from mlxforge.cli.options import config_from
    from mlxforge.core.config import yaml_layer
    from mlxforge.core.settings import CONFIGS
    from mlxforge.runs.record import objective_for

    if file is not None:
        yaml_layer(file)  # a file that is not there is told before its name is read
    found = objective_for(objective, file)
    flags = {f"setting__{key}": value for key, value in named.items() if value is not None}
    return found, config_from(CONFIGS[found], file, assignments, flags)


@click.command()
@OBJECTIVE
@CONFIG
@SET
@click.option(
    "--over",
    multiple=True,
    metavar="KEY=VALUES",
    help="A setting to search: learning_rate=1e-5..5e-4:log, or lora.rank=8,16,32. Several times for several settings.",
)
@click.option("--trials", type=click.IntRange(1, 999), help="Runs to make. [default: 8; of a grid, or of fewer values, all]")
@click.option("--grid", is_flag=True, help="Every combination; a range needs its number of points: 1e-5..1e-3:log:5.")
@click.option(
    "--metric",
    metavar="SET.FIGURE",
    help="What trials are judged by: valid.loss, retention.bpb, task.exact_match, … [default: valid.loss]",
)
@click.option(
    "--prune/--no-prune", default=True, help="Stop a trial that is worse than the median at an evaluation. [default: prune]"
)
@click.option("-n", "--name", help="Name of the sweep; its runs are NAME-t01 and so on. [default: objective and time]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Same seed, same suggestions.")
@click.option("--runs-dir", metavar="DIR", help="Folder that holds the runs.")
@click.option("--resume", is_flag=False, flag_value=LAST, metavar="[NAME]", help="Go on with a sweep (default: the last).")
@click.option("--dry-run", is_flag=True, help="Say what would be run, with a forecast of its time, and run nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before the runs begin.")
@JSON
def sweep(
    objective: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    over: tuple[str, ...],
    resume: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Search for settings: short runs with different values, the hopeless ones stopped early.

    The objective is the one named, else the one that the file's name says (sft.yaml, handbook-dpo). Trials are ordinary runs;
    a sweep that was stopped goes on with --resume. The best settings are written as YAML: mlxforge sft -c runs/NAME/best.yaml.
    Needs the extra 'sweep'.

    \b
    mlxforge sweep -c sft.yaml --over 'learning_rate=1e-5..5e-4:log' --trials 8
    mlxforge sweep sft -c my.yaml --over 'lora.rank=8,16,32' --over 'epochs=1,2' --grid --yes
    mlxforge sweep -c handbook-sft --over 'learning_rate=1e-4..1e-2:log' --metric task.exact_match
    """
    from mlxforge.runs import sweep as sweeps
    from mlxforge.ui.bars import bars
    from mlxforge.ui.trackers import Trackers

    if resume is not None:
        _only_resume(file, assignments, over, objective, options)
        search = sweeps.old_sweep(resume, options["runs_dir"] or "runs")
    else:
        search = _asked(objective, file, assignments, over, options)
    if not _agreed(search, dry_run, yes or resume is not None, as_json):
        return
    from mlxforge.core.errors import Interrupted

    try:
        with bars() as emit, Trackers(emit) as following:
            ended = sweeps.sweep(search, emit, [following])
    except Interrupted as stop:
        if as_json and stop.result is not None:
            show_json(stop.result)
        raise
    if as_json:
        show_json(ended.result)
    else:
        _table(search, ended)
        show_next(ended.next_steps)


def _asked(
    objective: str | None, file: Path | None, assignments: tuple[str, ...], over: tuple[str, ...], options: Mapping[str, Any]
) -> Sweep:
    from mlxforge.core.config import to_dict
    from mlxforge.runs import sweep as sweeps

    found, config = settings_of(objective, file, assignments, runs_dir=options["runs_dir"])
    asked = sweeps.Asked(
        name=options["name"] or "",
        objective=found,
        config=to_dict(config),
        over=list(over),
        trials=options["trials"],
        metric=options["metric"] or sweeps.DEFAULT_METRIC,
        seed=options["seed"],
        grid=options["grid"],
        prune=options["prune"],
    )
    return sweeps.new_sweep(asked)


def _only_resume(
    file: Path | None, assignments: tuple[str, ...], over: tuple[str, ...], objective: str | None, options: Mapping[str, Any]
) -> None:
    from mlxforge.core.errors import ConfigError

    given = [options[key] for key in ("trials", "metric", "name", "grid")]
    if file or assignments or over or objective or any(given):
        raise ConfigError(
            "a sweep keeps its settings", where="--resume", fix="leave the other options out, or begin a new sweep"
        )


def _agreed(search: Sweep, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Shows the plan where it is asked for or must be agreed to; returns whether to run."""
    from mlxforge.core.errors import ConfigError

    if yes and not dry_run:
        return True
    asks = sys.stdin.isatty() and sys.stderr.isatty()
    if not (asks or dry_run):
        raise ConfigError(f"{search.trials} runs wait for a yes, and there is no terminal to ask", where="sweep", fix="--yes")
    from mlxforge.runs.sweep import forecast
    from mlxforge.ui.bars import bars

    with bars() as emit:
        plan = forecast(search, emit)
    if dry_run and as_json:
        show_json(plan)
    else:
        _plan(plan, err=not dry_run)
    if dry_run:
        return False
    click.confirm("begin?", abort=True, err=True)
    return True


def _plan(plan: Mapping[str, Any], err: bool) -> None:
    from mlxforge.ui.units import clock

    lines = {
        "sweep": f"{plan['sweep']} ({plan['objective']})",
        "over": "; ".join(plan["over"]),
        "judged by": f"{plan['metric']}, {plan['better']} is better",
        "trials": f"{plan['trials']:,} of {plan['steps']:,} steps",
        "time": f"about {clock(plan['seconds'])} a trial, {clock(plan['seconds'] * plan['trials'])} at most",
    }
    for key, value in lines.items():
        click.echo(f"{key:<12}{value}", err=err)


def _table(search: Sweep, ended: SweepResult) -> None:
    from rich.table import Table
    from rich.text import Text

    from mlxforge.ui.console import console
    from mlxforge.ui.units import NONE, number, one_line

    table = Table(box=None, pad_edge=False)
    keys = [one.key for one in search.space]
    for title in ("run", "status"):
        table.add_column(title, no_wrap=True)
    for title in (*keys, "steps", search.metric.name):
        table.add_column(title, justify="right", no_wrap=True)
    for one in ended.trials:
        values = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in one.settings.values()]
        figure = number(one.value) if one.value is not None else NONE
        status = "diverged" if one.diverged else one.status
        cells = (one.run, status, *values, f"{one.steps:,}", figure)
        best = ended.best is not None and one.run == ended.best.run
        table.add_row(
            *(Text(one_line(cell)) for cell in cells),
            style="bold #41c98e" if best else "" if one.value is not None else "bright_black",
        )
    console().print(table)
    if ended.best is None:
        click.echo("no trial finished: lower the range of the learning rate")
    else:
        click.echo(f"best: {ended.best.run}, settings in {ended.result['best']['config']}")
        for key in ended.result["at_the_end_of_its_range"]:
            click.echo(f"the best {key} lies at the end of its range: a wider one may hold a better")
