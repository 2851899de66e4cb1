"""Options of the commands that ask a model for rows, and the provider that they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlxforge.cli.shaping import FORCE, JSON, Number, heading, show_json, show_next, some

if TYPE_CHECKING:
    from mlxforge.knowledge.asked import ProviderSettings

POSITIVE = Number(0, min_open=True)
Command = TypeVar("Command", bound=Callable[..., Any])

OPTIONS = (
    click.option("--provider", default="mlx", show_default=True, help="mlx: a model in this process. openai: any such server."),
    click.option(
        "-m", "--model", metavar="MODEL", help="mlx: 'tiny', a folder, a hub id, run:NAME. openai: its name on the server."
    ),
    click.option(
        "--url", metavar="URL", help="Of an OpenAI-compatible server. [default: $OPENAI_BASE_URL; key: $OPENAI_API_KEY]"
    ),
    click.option(
        "--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests answered at a time."
    ),
    click.option("--rpm", type=POSITIVE, metavar="N", help="Requests a minute at most."),
    click.option(
        "--timeout", type=POSITIVE, default=120.0, show_default=True, metavar="SECONDS", help="For one reply of a server."
    ),
    click.option("--price-in", type=POSITIVE, metavar="USD", help="Price of a million tokens of prompt."),
    click.option("--price-out", type=POSITIVE, metavar="USD", help="Price of a million tokens of answer."),
    click.option("--max-cost", type=POSITIVE, metavar="USD", help="Ceiling over all runs of the job; needs the prices."),
)
MAKING = (
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of a local model."),
    click.option("--rejects", type=click.Path(path_type=Path), metavar="FILE", help="Write what was refused, with reasons."),
    click.option(
        "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder that holds the runs."
    ),
    click.option("--redo", is_flag=True, help="Forget what this job made and start anew."),
    click.option("--dry-run", is_flag=True, help="Ask nobody: estimate calls, tokens and cost, and show three prompts."),
    FORCE,
    JSON,
)


def options(*wanted: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, in order."""

    def add(command: Command) -> Command:
        for option in reversed(wanted):
            command = option(command)
        return command

    return add


def reached(given: dict[str, Any], model: str | None, url: str | None) -> ProviderSettings:
    """How a provider is reached.

    Raises:
        click.UsageError: a ceiling without prices.
    """
    from mlxforge.knowledge.asked import ProviderSettings
    from mlxforge.runs.synth import opener

    if given["max_cost"] and not (given["price_in"] and given["price_out"]):
        raise click.UsageError("--max-cost needs --price-in and --price-out")
    return ProviderSettings(
        model=model or "",
        url=url or "",
        concurrency=given["concurrency"],
        rpm=given["rpm"] or 0.0,
        timeout=given["timeout"],
        price_in=given["price_in"] or 0.0,
        price_out=given["price_out"] or 0.0,
        opener=opener(given["runs_dir"]),
    )


def asked(make: Callable[..., dict[str, Any]], as_json: bool, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs ``make(emit=...)`` under progress bars and shows what it came to, also where it was stopped."""
    import signal

    from mlxforge.core.errors import MlxforgeError
    from mlxforge.ui.bars import bars

    # A server that hangs up while it is written to must be an error, not the silent end of this process.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    shown = show_json if as_json else show
    try:
        with bars() as emit:
            result = make(emit=emit)
    except MlxforgeError as error:
        if held := getattr(error, "result", None):
            shown(held)
        raise
    shown(result)
    if not as_json:
        show_next(result["next"])
    return result


def show_made(result: dict[str, Any], about: Mapping[str, str]) -> None:
    """What a job came to; ``about`` says what the reasons mean."""
    show_calls(result, about)
    if result["output"]:
        click.echo(f"wrote {result['output']}: {some(result['rows'], 'row')}")
    if result["rejects"]:
        click.echo(f"wrote {result['rejects']}: what was refused")


def show_calls(result: dict[str, Any], about: Mapping[str, str]) -> None:
    """The rows by style, what was refused and why, and what the calls took."""
    tasks = result["tasks"]
    made = ", ".join(f"{style} {count:,}" for style, count in result["styles"].items())
    click.echo(f"rows: {made or 'none'}")
    for reason, count in result["rejected"].items():
        click.echo(f"refused: {count:,} {reason} ({about.get(reason, 'by a person')})")
    if tasks["failed"] or tasks["open"]:
        click.echo(f"calls: {tasks['done']:,} done, {tasks['failed']:,} failed, {tasks['open']:,} to go")
    cost = f", ${result['cost']:.4f}" if result["cost"] else ""
    click.echo(
        f"asked {some(result['calls'], 'time')}: {result['prompt_tokens']:,} tokens of prompts, "
        f"{result['completion_tokens']:,} of answers{cost}"
    )


def show_estimate(found: dict[str, Any]) -> None:
    """What a job would come to, its first prompts above."""
    for prompt in found["prompts"]:
        click.echo(heading(prompt["style"]))
        for turn in prompt["messages"]:
            click.echo(f"[{turn['role']}]\n{turn['content']}\n")
    click.echo(f"calls: {found['tasks']:,}, for {some(found['rows'], 'row')}")
    answers = found["completion_tokens"]
    prompts = f"about {found['prompt_tokens']:,} of prompts"
    click.echo(f"tokens: {prompts} and {answers['expected']:,} of answers, {answers['most']:,} at most")
    if found["cost"]["most"]:
        click.echo(f"cost: about ${found['cost']['expected']:.2f}, ${found['cost']['most']:.2f} at most")
