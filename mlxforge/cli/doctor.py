"""``mlxforge doctor``."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from mlxforge.runs.doctor import Check

MARKS = {
    "good": ("✓", "#41c98e"),
    "absent": ("·", "bright_black"),
    "warning": ("!", "bold yellow"),
    "problem": ("✗", "bold red"),
}
NAMES = 15  # columns of a name


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
def doctor(as_json: bool) -> int:
    """Look at machine and installation: memory, Metal, speed, versions, extras, disk; and say how to mend what is wrong.

    Nothing leaves this machine, and no token is shown. Exit code 1 where training cannot work, else 0.
    """
    from rich.console import Console

    from mlxforge.cli.shaping import show_json
    from mlxforge.runs import doctor as looks
    from mlxforge.ui.listen import can_draw

    checks: list[Check] = []
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    def take(check: Check) -> None:
        if not as_json:
            _line(console, check, first=not checks or checks[-1].group != check.group)
        checks.append(check)

    for check in looks.examine():
        take(check)
    width = shutil.get_terminal_size().columns
    take(looks.terminal(can_draw(sys.stdout), sys.stdout.encoding or "unknown", width, sys.stdout.isatty()))
    well = looks.healthy(checks)
    if as_json:
        show_json(_plain(checks, well))
    else:
        _end(console, checks, well)
    return 0 if well else 1


def _plain(checks: list[Check], well: bool) -> dict[str, Any]:
    import msgspec

    plain = [msgspec.to_builtins(check) for check in checks]
    return {"healthy": well, "problems": [one for one in plain if one["status"] in ("problem", "warning")], "checks": plain}


def _line(console: Console, check: Check, first: bool) -> None:
    from rich.text import Text

    from mlxforge.ui.units import one_line

    if first:
        console.print(Text(f"\n{check.group}", style="bold"))
    mark, style = MARKS[check.status]
    body = Text(one_line(check.shown), style="bright_black" if check.status == "absent" else "")
    lines = [Text.assemble("→ ", (check.fix, "#4aa8ff"))] if check.fix else []
    room = max(20, console.width - NAMES - 5)
    wrapped = [part for line in (body, *lines) for part in ([line] if console.soft_wrap else line.wrap(console, room))]
    for number, line in enumerate(wrapped):
        begin = Text.assemble("  ", (mark, style), f" {check.name:<{NAMES}} ") if number == 0 else Text(" " * (NAMES + 5))
        console.print(begin + line)


def _end(console: Console, checks: list[Check], well: bool) -> None:
    from rich.text import Text

    problems, warnings = (sum(check.status == status for check in checks) for status in ("problem", "warning"))
    said = [f"{problems} problem{'s' * (problems > 1)}"] if problems else []
    said += [f"{warnings} warning{'s' * (warnings > 1)}"] if warnings else []
    text = ", ".join(said) or "all well"
    console.print(Text(f"\n{text}: training {'works' if well else 'cannot work'} here", style="bold" if well else "bold red"))
