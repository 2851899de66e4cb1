"""``mlxforge generate``, and the options that it shares with ``chat`` and ``serve``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.shaping import Number
from mlxforge.cli.subject import PREFER, preferred

if TYPE_CHECKING:
    from mlxforge.runs.opening import Opened

Command = Callable[..., Any]
OPTIONS = (
    click.option(
        "-m", "--model", metavar="MODEL", help="'tiny', a folder, a hub id, or run:NAME[@STEP]. [default: the last run]"
    ),
    PREFER,
    click.option(
        "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder that holds the runs."
    ),
    click.option(
        "--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Tokens of an answer at most."
    ),
    click.option(
        "--temperature",
        type=Number(0, 10),
        default=0.0,
        show_default=True,
        help="0 takes the likeliest token, 1 draws as the model weighs them.",
    ),
    click.option(
        "--top-p",
        type=Number(0, 1, min_open=True),
        default=1.0,
        show_default=True,
        help="Draw from the likeliest tokens that together have this probability.",
    ),
)
THINKING = click.option("--thinking/--no-thinking", default=None, help="For models that can do both. [default: as trained]")
SEED = click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Same seed, same answer. [default: a new one each time]")
SYSTEM = click.option("--system", default="", metavar="TEXT", help="System prompt.")


def model_options(command: Command) -> Command:
    """Which model answers, and how its tokens are chosen."""

    @functools.wraps(command)
    def named(model: str | None, prefer_tuned: str | None, runs_dir: Path, **options: Any) -> None:
        if prefer_tuned is not None:
            model = preferred(prefer_tuned, runs_dir, model)
        command(model=model, runs_dir=runs_dir, **options)

    for option in reversed(OPTIONS):
        named = option(named)
    return named


def chosen(model: str | None, runs_dir: Path) -> str:
    """The model that was asked for; where none was, the last run, else ``tiny``, and a line on stderr that says which."""
    from mlxforge.core.blas import load_blas
    from mlxforge.runs.opening import default_model

    if (slow := load_blas()) and sys.stderr.isatty():
        click.echo(slow, err=True)
    name = default_model(runs_dir) if model is None else model
    if model is None:
        click.echo(f"model: {name}", err=True)
    return name


def opened(model: str | None, runs_dir: Path) -> Opened:
    """:func:`chosen`, loaded."""
    from mlxforge.runs.opening import open_model
    from mlxforge.ui.talk import status

    name = chosen(model, runs_dir)
    with status(f"loading {name}"):
        return open_model(name, runs_dir)


@click.command()
@click.argument("prompt")
@model_options
@SEED
@SYSTEM
@THINKING
@click.option("--raw", is_flag=True, help="Continue PROMPT as text, without the chat template.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one object: text, tokens, finish_reason, …")
def generate(
    prompt: str,
    model: str | None,
    runs_dir: Path,
    seed: int | None,
    system: str,
    thinking: bool | None,
    raw: bool,
    stop: tuple[str, ...],
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer PROMPT once, on stdout; '-' reads it from stdin.

    A model that thinks does so on stderr.

    \b
    mlxforge generate "Where does the ferry to Varn leave?" --model run:last
    mlxforge generate --raw "The gate of Bralcombe Workshop" --max-tokens 40
    mlxforge generate - --json < question.txt
    """
    from mlxforge.core.errors import ConfigError

    if "" in stop:
        raise ConfigError("an empty text ends every answer", where="--stop", fix="give some text")
    if raw and (system or thinking is not None):
        raise ConfigError("--raw takes no system prompt and no thinking", where="--raw", fix="leave them or --raw out")
    text = _read() if prompt == "-" else prompt
    if not text.strip() and not raw:
        raise ConfigError("the prompt is empty", where="PROMPT", fix='say something: mlxforge generate "Hello"')
    found = opened(model, runs_dir)

    from mlxforge.core.rows import Message
    from mlxforge.models.streaming import Sampling, seed_sampling
    from mlxforge.runs.talk import reply_to_chat, reply_to_text
    from mlxforge.ui.talk import show

    seed_sampling(seed)
    settings = Sampling(**sampling, stop=stop)
    messages = ([Message("system", system)] if system else []) + [Message("user", text)]
    reply = reply_to_text(found, text, settings) if raw else reply_to_chat(found, messages, settings, thinking=thinking)
    if not as_json:
        show(reply, sys.stdout, sys.stderr)
        if reply.finish == "length":
            click.echo(f"(cut off after {reply.tokens} tokens)", err=True)
        return
    for _ in reply:
        pass
    click.echo(_json(found.name, text, reply))


def _read() -> str:
    from mlxforge.core.errors import DataError

    try:
        return sys.stdin.buffer.read().decode().strip("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", where="stdin", fix="convert it to UTF-8") from error


def _json(model: str, prompt: str, reply: Any) -> str:
    import msgspec

    shown = {
        "model": model,
        "prompt": prompt,
        "text": reply.answer,
        **({"reasoning": reply.thoughts.strip()} if reply.thoughts else {}),
        "tokens": reply.tokens,
        "prompt_tokens": len(reply.prompt),
        "finish_reason": reply.finish,
        "tokens_per_second": reply.tokens_per_second,
    }
    return msgspec.json.encode(shown).decode()
