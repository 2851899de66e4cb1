"""``mlxforge``: the table of commands, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from mlxforge.cli.lazy import Commands
from mlxforge.core.errors import ConfigError, MlxforgeError

COMMANDS = {
    "init": ("mlxforge.cli.init", "Make a project folder with a forge.yaml that says what is done."),
    "pipeline": ("mlxforge.cli.pipeline", "The whole road of a project: documents to a verified file, stage by stage."),
    "cpt": ("mlxforge.cli.cpt", "Continue pre-training on raw text: the model learns your documents."),
    "sft": ("mlxforge.cli.sft", "Fine-tune on conversations: the model learns to answer."),
    "dpo": ("mlxforge.cli.preference", "Prefer: learn from pairs which answer is the better one."),
    "orpo": ("mlxforge.cli.preference", "Prefer without a reference, by odds."),
    "simpo": ("mlxforge.cli.preference", "Prefer without a reference, by log-probabilities a token."),
    "cpo": ("mlxforge.cli.preference", "Prefer without a reference, beside the chosen answers' cross-entropy."),
    "kto": ("mlxforge.cli.preference", "Prefer from single answers that are wanted or not."),
    "sweep": ("mlxforge.cli.sweep", "Search for settings: short runs with different values, judged by a figure."),
    "lr-find": ("mlxforge.cli.lr_find", "Find a learning rate: it rises until the loss does."),
    "plan": ("mlxforge.cli.plan", "Forecast memory and time of a training run, and choose settings that fit."),
    "fuse": ("mlxforge.cli.fuse", "Merge an adapter into its base: one model folder."),
    "export": ("mlxforge.cli.export", "Write a run or a model as other programs read it: GGUF, Ollama, PEFT, MLX, the hub."),
    "verify": ("mlxforge.cli.verify", "Hold a GGUF file against the run or model it was made of."),
    "gate": ("mlxforge.cli.gate", "Hold the report of an evaluation to requirements: exit 0 or 1."),
    "eval": ("mlxforge.cli.eval", "Evaluate models side by side: answers, likelihoods, speed, what was forgotten."),
    "chat": ("mlxforge.cli.chat", "Talk to a model or a run."),
    "generate": ("mlxforge.cli.generate", "Answer one prompt, for scripts."),
    "serve": ("mlxforge.cli.serve", "Serve a model or a run over HTTP, as OpenAI does."),
    "ingest": ("mlxforge.cli.ingest", "Read documents into a knowledge base: PDF, Office, HTML, EPUB, text, code."),
    "data": ("mlxforge.cli.data", "Check, preview, convert, split, mix and clean training data."),
    "synth": ("mlxforge.cli.synth", "Make training data: questions and answers, pairs, passages, commands."),
    "kb": ("mlxforge.cli.kb", "Look into a knowledge base, and change it by hand."),
    "runs": ("mlxforge.cli.runs", "List, show, compare, watch and remove training runs."),
    "doctor": ("mlxforge.cli.doctor", "Look at machine and installation, and say how to mend what is wrong."),
    "models": ("mlxforge.cli.models", "Models on this disk, model families, and what a model is."),
}


@click.group(cls=Commands, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlxforge", message="mlxforge %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error. Goes anywhere on the line.")
def cli(debug: bool) -> None:
    """From a folder of documents to your own local model, on one Mac."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Exit codes: 0 done, 1 failed run, 2 bad input, 130 interrupted (state saved)."""
    line = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in line
    line = [word for word in line if word != "--debug"]
    # A reader that went away (mlxforge ... | head) ends the program quietly.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # not every terminal knows a check mark
    sys.exit(run(line, debug))


def run(line: list[str], debug: bool) -> int:
    """One command; returns the exit code."""
    try:
        _check_folder()
        outcome: Any = cli.main(args=line, prog_name="mlxforge", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        return 130
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except MlxforgeError as error:
        if debug:
            raise
        for text in str(error).splitlines():
            click.echo(f"error: {text}", err=True)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        click.echo(f"error: {type(error).__name__}: {error} (a defect of mlxforge: --debug shows where)", err=True)
        return 1


def _check_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"cannot be worked in: {error.strerror}", where="this folder", fix="cd to one that is there"
        ) from None
