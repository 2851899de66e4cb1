"""What the commands that hand a model over have in common: how it is named, where the result goes, how it is quantized."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlxforge.runs.opening import Base

# As in export.quantize, which cannot be imported without numpy.
QUANTS = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_0", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m")
DEFAULT_QUANT = "q4_k_m"

FOLDER = click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.")
QUANT = click.option(
    "--quant",
    "quants",
    multiple=True,
    type=click.Choice(QUANTS, case_sensitive=False),
    help=f"Kind of numbers; several make several files. {DEFAULT_QUANT} unless said.",
)
VERIFY = click.option(
    "--verify/--no-verify", default=None, help="Hold the file against the model in llama.cpp; done where the extra 'gguf' is."
)
PREFER = click.option(
    "--prefer-tuned",
    metavar="NAME",
    help="Instead: the newest run of this name (NAME, NAME-2, …) or objective that passed its gate.",
)
NAMED = (
    click.argument("run", required=False),
    click.option("-m", "--model", metavar="MODEL", help="A model, or the base of --adapter: 'tiny', a folder, or a hub id."),
    click.option(
        "--adapter",
        "adapters",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder of an adapter, or run:NAME, over --model or the base it names; several are merged in order.",
    ),
    PREFER,
    click.option(
        "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder with the runs."
    ),
)


def preferred(name: str, runs_dir: Path, *others: object) -> str:
    """``run:NAME`` of the run that ``--prefer-tuned NAME`` means, told on stderr; ``others`` are names that exclude it.

    Raises:
        ConfigError: another model is named too.
        RunError: no such run has passed its gate.
    """
    from mlxforge.core.errors import ConfigError
    from mlxforge.runs.tuned import prefer_tuned

    if any(others):
        raise ConfigError("two models are named", where="--prefer-tuned", fix="leave it out, or the other one")
    run = prefer_tuned(name, runs_dir)
    click.echo(f"model: run:{run} (it passed its gate)", err=True)
    return f"run:{run}"


def subject(command: Callable[..., None]) -> Callable[..., None]:
    """RUN, --model, --adapter, --prefer-tuned and --runs-dir of a command that takes ``base``: says what they name.

    The command ends at a polite kill as it does at Ctrl-C, so that nothing half-written stays.
    """

    @functools.wraps(command)
    def named(
        run: str | None,
        model: str | None,
        adapters: tuple[Path, ...],
        prefer_tuned: str | None,
        runs_dir: Path,
        **options: Any,
    ) -> None:
        def base() -> Base:
            from mlxforge.runs.opening import subject as resolved

            name = preferred(prefer_tuned, runs_dir, run, model, adapters) if prefer_tuned is not None else run
            return resolved(name, model, adapters, runs_dir)

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        command(base=base, **options)

    for option in reversed(NAMED):
        named = option(named)
    return named
