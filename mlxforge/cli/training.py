"""What the commands that train have in common: options, resume, dry run, modes of output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from mlxforge.cli.options import config_from, given, setting_options
from mlxforge.core.config import to_dict, to_yaml
from mlxforge.core.errors import ConfigError, Interrupted
from mlxforge.core.events import Control
from mlxforge.core.settings import TrainSettings

LAST = "last"
SHARES = ("padding", "prompt_share")  # figures of a plan that are shares of 1
# What shapes a plan: of --dry-run, and of the command `plan`.
PLANNING = (
    click.option("--probe", is_flag=True, help="Of a plan: measure memory and time in two updates, instead of counting."),
    click.option("--memory", metavar="SIZE", help="Of a plan: choose settings that fit into this much, such as 16GB."),
)
OPTIONS = (
    click.option(
        "--resume",
        is_flag=False,
        flag_value=LAST,
        metavar="[RUN]",
        help="Go on with an interrupted or killed run (default: the last).",
    ),
    click.option("--dry-run", is_flag=True, help="Print the resolved settings and the plan; write nothing."),
    *PLANNING,
    click.option("--plain", "mode", flag_value="plain", help="Lines instead of the dashboard."),
    click.option("--quiet", "mode", flag_value="quiet", help="Warnings and the end summary only."),
    click.option("--json", "mode", flag_value="json", help="One result object on stdout, logs on stderr."),
)


def training_command(settings: type[TrainSettings]) -> Callable[[Callable[[], None]], click.Command]:
    """Makes a command that trains by ``settings``; name and help are those of the decorated function, which has no body."""

    def decorate(described: Callable[[], None]) -> click.Command:
        def command(
            file: Path | None,
            assignments: tuple[str, ...],
            resume: str | None,
            dry_run: bool,
            probe: bool,
            memory: str | None,
            mode: str | None,
            **flags: Any,
        ) -> None:
            config = config_from(settings, file, assignments, flags)
            if (probe or memory) and not dry_run:
                flag = "--probe" if probe else "--memory"
                raise ConfigError(f"{flag} shapes a plan, not a run", where=flag, fix="add --dry-run")
            if resume is not None and dry_run:
                raise ConfigError("--resume and --dry-run do not go together", where="--dry-run", fix="leave one of them out")
            if resume is not None:
                _only_resume(file, assignments, flags)
                resume = config.name if resume == LAST and config.name else resume
            if dry_run:
                show_plan(config, probe, memory, mode == "json")
                return
            _run(config, described.__name__, resume, mode or "auto")

        command.__doc__ = described.__doc__
        callback: Any = command
        for option in reversed(OPTIONS):
            callback = option(callback)
        return click.command(described.__name__)(setting_options(settings)(callback))

    return decorate


def _only_resume(file: Path | None, assignments: tuple[str, ...], flags: dict[str, Any]) -> None:
    extra = sorted(set(given(flags)) - {"name", "runs_dir"})
    if file or assignments or extra:
        raise ConfigError(
            "a resumed run keeps its settings", where="--resume", fix="leave the other settings out, or start a new run"
        )


def show_plan(config: TrainSettings, probe: bool, memory: str | None, as_json: bool) -> None:
    """Prints the plan of a run, with the settings that it is for; with ``memory``, those that fit into it."""
    from mlxforge.runs.fit import parse_size
    from mlxforge.runs.plan import plan
    from mlxforge.ui.listen import listeners

    size = None if memory is None else parse_size(memory)
    with listeners("json" if as_json else "quiet") as emit:
        found = plan(config, [emit], probe=probe, memory=size)
    click.echo(_json({"config": to_dict(config), "plan": found}) if as_json else _page(config, found))


def _run(config: TrainSettings, objective: str, resume: str | None, mode: Any) -> None:
    from mlxforge.runs import train as runs
    from mlxforge.ui.listen import listeners

    control = Control()
    try:
        with listeners(mode, control) as emit:
            if resume is not None:
                ended = runs.resume(resume, config.runs_dir, [emit], control, objective)
            else:
                ended = runs.train(config, [emit], control)
    except Interrupted as stop:
        if mode == "json" and stop.result is not None:
            click.echo(_json(stop.result))
        raise
    if mode == "json":
        click.echo(_json(ended.result))


def _json(value: dict[str, Any]) -> str:
    """One line of JSON; a number that is not finite becomes null, so that every reader takes it."""
    return msgspec.json.encode(value).decode()


def _page(config: TrainSettings, plan: dict[str, Any]) -> str:
    """Settings as YAML, then the plan as lines."""
    from mlxforge.runs.plan import SOURCES

    memory, fit, source = plan.pop("memory"), plan.pop("fit", None), plan.pop("source")
    lines = [f"{key.replace('_', ' ') + ':':<26}{_shown(key, value)}" for key, value in plan.items()]
    parts = [f"{'memory, ' + part + ':':<26}{size / 2**20:,.1f} MB" for part, size in memory.items() if size]
    said = [f"{'memory and seconds:':<26}{SOURCES[source]}"]
    head = ["# settings", to_yaml(config), "# plan (nothing was written)"]
    return "\n".join([*head, *lines, *parts, *said, *(_fitted(fit) if fit is not None else [])])


def _fitted(fit: dict[str, Any]) -> list[str]:
    """What to change so that a run fits: as flags, and as YAML."""
    if not fit["changes"]:
        return ["", f"# it fits as it is, with {fit['headroom']:.0%} to spare"]
    yaml = [f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in fit["changes"].items()]
    notes = [f"# {note}" for note in fit["notes"]]
    spare = f"with {fit['headroom']:.0%} to spare"
    head = f"# the plan above fits by these changes, {spare}; it takes about {fit['slowdown']:.2f} times as long"
    return ["", head, *notes, fit["flags"], "# or as YAML", *yaml]


def _shown(key: str, value: Any) -> str:
    if key in SHARES:
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
