"""``mlxforge eval``."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.asking import options
from mlxforge.cli.assisting import DRY_RUN, JUDGE, PROMPTS, RAG, SUITE, assisted, show_plan
from mlxforge.cli.shaping import show_json, show_next
from mlxforge.cli.subject import preferred

if TYPE_CHECKING:
    from mlxforge.evals.report import Report

GATED = ("exact_match", "command_exact", "choice_accuracy", "preference_accuracy")


@click.command("eval")
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "-d",
    "--data",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Rows or text; kb.sqlite and sample:… too. Several make several sets.",
)
@click.option(
    "--metrics", multiple=True, metavar="NAMES", help="Metrics or groups of them, parted by commas. [default: all that fit]"
)
@click.option("--retention", metavar="FILE", help="General text in the same table. [default: the shipped one]")
@click.option("--no-retention", is_flag=True, help="Without general text.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the report. [default: reports/eval-TIME]"
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Rows of each set at most; of a text, passages.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Tokens of an answer at most.")
@click.option(
    "--max-length", type=click.IntRange(min=16), default=1024, show_default=True, metavar="N",
    help="Tokens that a text is read in at a time, as in training.",
)  # fmt: skip
@click.option("--thinking/--no-thinking", default=None, help="For models that can do both. [default: as trained]")
@click.option(
    "--latency-prompts", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
    help="Prompts answered one by one, with a clock.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the confidence intervals.")
@click.option("--fresh", is_flag=True, help="Ask for everything again; else what a model gave before is not asked twice.")
@click.option("--format", metavar="NAME", help="Format of the rows, such as alpaca. [default: found row by row]")
@click.option("--map", "mapping", multiple=True, metavar="KEY=KEY", help="Where a row has its parts: --map prompt=question.")
@options(*RAG, *JUDGE, PROMPTS, *SUITE)
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder that holds the runs."
)
@click.option(
    "--prefer-tuned",
    metavar="NAME",
    help="Also: the newest run of this name or objective that passed its gate.",
)
@DRY_RUN
@click.option("--json", "as_json", is_flag=True, help="The report as one object on stdout, notes on stderr.")
@click.option("--plain", is_flag=True, help="Lines in place of a table.")
def eval(  # noqa: A001 - the name of the command
    models: tuple[str, ...],
    metrics: tuple[str, ...],
    no_retention: bool,
    mapping: tuple[str, ...],
    prefer_tuned: str | None,
    dry_run: bool,
    as_json: bool,
    plain: bool,
    **given: Any,
) -> None:
    """Evaluate models side by side on the same rows, into one report.

    \b
    mlxforge eval tiny run:answers --data test.jsonl
    mlxforge eval base=tiny sft=run:answers dpo=run:answers-dpo --data test.jsonl --data pairs.jsonl -o report
    mlxforge eval run:answers answers.q4_k_m.gguf --data test.jsonl --metrics exact_match,latency
    mlxforge eval tiny run:answers --data sft.test.jsonl --rag kb.sqlite --top-k 3
    mlxforge eval base=tiny run:answers --data test.jsonl --judge openai --judge-url http://127.0.0.1:8080/v1
    mlxforge eval base=tiny run:answers --suite lm-eval --tasks arc_easy,hellaswag --limit 200

    A MODEL is 'tiny', a folder, a hub id, run:NAME, run:NAME@STEP, or a .gguf file; LABEL=MODEL names it in the report. The
    others are held against the first. What fits a set is found by its rows: text (perplexity, bits a byte), conversations
    (exact match, F1, ROUGE, BLEU), commands, choices, preference pairs.

    --rag asks each question three times: closed book, with passages of the knowledge base that a search finds (SET+rag), and
    with the one that its row names (SET+gold). --judge has every answer given points from 1 to 5, and each model's compared
    with the first one's in both orders.

    Answers are kept as they come: after Ctrl-C the same command goes on.
    """
    if no_retention and given["retention"]:
        raise click.UsageError("--retention and --no-retention do not go together")
    given = assisted(given)
    from mlxforge.runs.eval_job import EvalSettings, output_folder
    from mlxforge.runs.evaluate import evaluate, plan
    from mlxforge.ui.bars import bars

    if prefer_tuned is not None:
        models = (*models, preferred(prefer_tuned, given["runs_dir"]))
    given["map"] = _mapped(mapping)
    given["retention"] = "" if no_retention else given["retention"]
    given["output"] = output_folder(given["output"])
    names = tuple(name for one in metrics for name in one.replace(",", " ").split())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if given["judge"]:  # a server that hangs up while it is written to must be an error, not the silent end of this process
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    settings = EvalSettings(models=models, metrics=names, **given)
    if dry_run:
        found = plan(settings)
        show_json(found) if as_json else show_plan(found)
        return
    with bars() as emit:
        report = evaluate(settings, emit)
    if as_json:
        import msgspec

        show_json({**msgspec.to_builtins(report), "output": str(given["output"])})
        return
    _show(report, given["output"], plain)


def _show(report: Report, folder: Path, plain: bool) -> None:
    """The table, where the report is, and what to run now."""
    from rich.console import Console

    from mlxforge.ui.report import show_report

    # What is no terminal is given lines.
    show_report(report, Console(highlight=False, force_terminal=False if plain else None))
    click.echo(f"wrote {folder}: report.html, report.md, report.json, rows.jsonl")
    show_next(next_steps(report, folder))


def next_steps(report: Report, folder: Path) -> list[str]:
    """What to do with a report: hold the last model to what it reached, and to what the first one still knew."""
    from mlxforge.evals.report import RETENTION

    last = report.models[-1].label
    metrics = {name: value for sets in report.results[last].values() for name, value in sets.items() if value.low}
    words = [f"mlxforge gate {folder}"]
    if metric := next((name for name in GATED if name in metrics), None):
        words.append(f"--require '{last}.{metric}>={math.floor(100 * (metrics[metric].low or 0)) / 100:g}'")
    if len(report.models) > 1 and RETENTION in report.results[last]:
        words.append(f"--no-regression {RETENTION}.bpb:0.02")
    return [" ".join(words)] if len(words) > 1 else []


def _mapped(given: tuple[str, ...]) -> dict[str, str]:
    """``KEY=KEY`` texts as a mapping."""
    found = {}
    for one in given:
        ours, equals, theirs = one.partition("=")
        if not equals or not ours or not theirs:
            raise click.UsageError(f"--map {one}: write KEY=KEY, such as --map prompt=question")
        found[ours] = theirs
    return found
