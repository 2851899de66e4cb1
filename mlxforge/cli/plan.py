"""``mlxforge plan``: what a training run would take, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlxforge.cli.options import config_from, setting_options
from mlxforge.cli.training import PLANNING, show_plan
from mlxforge.core.settings import CONFIGS


class Objectives(click.Group):
    """A command an objective, made when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The objectives in the order of the table."""
        return list(CONFIGS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command over the objective's settings."""
        return _command(cmd_name) if cmd_name in CONFIGS else None


def _command(objective: str) -> click.Command:
    def command(
        file: Path | None, assignments: tuple[str, ...], probe: bool, memory: str | None, as_json: bool, **flags: Any
    ) -> None:
        show_plan(config_from(CONFIGS[objective], file, assignments, flags), probe, memory, as_json)

    callback: Any = command
    for option in reversed((*PLANNING, click.option("--json", "as_json", is_flag=True, help="One JSON object."))):
        callback = option(callback)
    text = f"Plan a run of {objective}: takes all settings of 'mlxforge {objective}'."
    return click.command(objective, help=text)(setting_options(CONFIGS[objective])(callback))


@click.group(cls=Objectives)
def plan() -> None:
    """Forecast what a training run takes: rows, tokens, steps, memory by part, and time. Nothing is written.

    No weights are read: memory is counted from the shapes of the model and of the data. --probe measures instead, in two
    updates on this machine. --memory chooses settings that fit.

    \b
    mlxforge plan sft -c sft-standard --model tiny --data sample:handbook/questions.train.jsonl
    mlxforge plan cpt --model tiny --data sample:handbook/documents --probe
    mlxforge plan dpo --model tiny --data sample:handbook/pairs.train.jsonl --memory 200MB --json
    """
