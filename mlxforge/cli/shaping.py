"""What the commands that write data have in common: options, and how a result is shown."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click


class Number(click.FloatRange):
    """A finite number within bounds: no bound of Click's holds off ``nan``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is no finite number.", param, ctx)


OUTPUT = click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="File to write.")
FORCE = click.option("--force", is_flag=True, help="Replace what is there already.")
JSON = click.option("--json", "as_json", is_flag=True, help="One result object on stdout, notes on stderr.")
SKIP_BAD = click.option("--skip-bad", is_flag=True, help="Leave bad rows out and count them, instead of stopping.")


def show_json(result: Mapping[str, Any]) -> None:
    """One line of JSON on stdout."""
    import msgspec

    click.echo(msgspec.json.encode(result).decode())


def coloured() -> bool:
    """Whether stdout is a terminal that may be given colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def heading(text: str) -> str:
    """A line that stands out where the terminal may show it."""
    return click.style(text, bold=True) if coloured() else text


def some(number: int, thing: str) -> str:
    """``1 row``, ``1,200 rows``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def show_next(commands: Iterable[str]) -> None:
    """What to run now."""
    for number, command in enumerate(commands):
        click.echo(("next: " if number == 0 else "      ") + command)


def edited(text: str, extension: str) -> str | None:
    """The text as the user's editor leaves it; None where it was not saved.

    Raises:
        DataError: the editor's command is no command line, or what it saved is not UTF-8.
        click.ClickException: there is no such editor, or it failed.
    """
    from mlxforge.core.errors import DataError

    try:
        return click.edit(text, extension=extension)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", where="what the editor saved", fix="save it as UTF-8") from None
    except ValueError as error:
        raise DataError(f"no command line: {error}", where="$VISUAL or $EDITOR", fix="name an editor: EDITOR=vi") from None
