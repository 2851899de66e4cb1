"""``mlxforge synth pairs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlxforge.cli.asking import MAKING, POSITIVE, asked, options, reached, show_estimate
from mlxforge.cli.shaping import OUTPUT, Number, show_json, some

JUDGES = ("overlap", "exact", "mlx", "openai")


@click.command()
@click.argument("store", type=click.Path(path_type=Path), metavar="KB")
@OUTPUT
@click.option("-m", "--model", metavar="MODEL", help="'tiny', a folder, a hub id, or run:NAME[@STEP]. [default: the last run]")
@click.option("--questions", multiple=True, metavar="FILE", help="Chat rows to ask, in place of the store's accepted rows.")
@click.option(
    "--grounded", type=click.Choice(("gold", "open-book")), default="gold", show_default=True,
    help="The better answer: the row's own, or the model's with the chunk in its prompt.",
)  # fmt: skip
@click.option(
    "--judge", type=click.Choice(JUDGES), default="overlap", show_default=True,
    help="Compare the answers' words, or ask a model which one is better, in both orders.",
)  # fmt: skip
@click.option("--judge-model", metavar="MODEL", help="The judge: mlx: a model as above. openai: its name on the server.")
@click.option("--judge-url", metavar="URL", help="The judge's server. [default: $OPENAI_BASE_URL; key: $OPENAI_API_KEY]")
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Questions in all; a larger one goes on.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Longer answers make no pair.")
@click.option("--temperature", type=Number(0, 2), default=0.7, show_default=True, help="Of the model's own answers.")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="DIR", help="Prompts to use in place of the shipped ones.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests answered at a time.")
@click.option("--rpm", type=POSITIVE, metavar="N", help="Requests a minute to the judge at most.")
@click.option(
    "--timeout", type=POSITIVE, default=120.0, show_default=True, metavar="SECONDS", help="For one reply of a server."
)
@click.option("--price-in", type=POSITIVE, metavar="USD", help="The judge's price of a million tokens of prompt.")
@click.option("--price-out", type=POSITIVE, metavar="USD", help="The judge's price of a million tokens of answer.")
@click.option("--max-cost", type=POSITIVE, metavar="USD", help="Ceiling over all runs of the job; needs the prices.")
@options(*MAKING)
def pairs(
    store: Path, output: Path, model: str | None, questions: tuple[str, ...], as_json: bool, dry_run: bool, **given: Any
) -> None:
    """Preference pairs from questions about documents: a model's own answer against a grounded one.

    \b
    mlxforge synth pairs kb.sqlite --model run:my-sft -o pairs.jsonl
    mlxforge synth pairs kb.sqlite --model run:my-sft --judge openai --judge-url http://127.0.0.1:11434/v1 -o pairs.jsonl
    mlxforge synth pairs kb.sqlite --model run:my-sft --questions chats.jsonl --grounded open-book -o pairs.jsonl

    The questions are the accepted rows of 'synth qa'. The model answers each without the text: what it makes up is the worse
    answer, the row's own the better one. Where both say the same there is no pair. A judge that is a model is asked in both
    orders; only what wins twice counts, ties are dropped and counted. The rows are for 'mlxforge dpo'.

    The job is in the store: a run that was stopped or killed goes on with the same command.
    """
    from mlxforge.cli.generate import chosen
    from mlxforge.runs.compare_answers import GroundedSettings
    from mlxforge.runs.synth_pairs import estimate_pairs, synth_pairs

    by_model = given["judge"] in ("mlx", "openai")
    for name in ("judge_model", "judge_url"):
        if given[name] and not by_model:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --judge mlx or --judge openai")
    names = ("grounded", "judge", "limit", "max_tokens", "temperature", "seed", "prompts")
    settings = GroundedSettings(**{name: given[name] for name in names})
    model = chosen(model, given["runs_dir"])
    judge = reached(given, given["judge_model"], given["judge_url"]) if by_model else None
    if dry_run:
        found = estimate_pairs(store, model, settings, judge, questions)
        show_json(found) if as_json else show_estimate(found)
        return
    kept = {name: given[name] for name in ("runs_dir", "rejects", "redo", "force")} | {"max_cost": given["max_cost"] or 0.0}
    provider = reached(given | dict.fromkeys(("max_cost", "price_in", "price_out")), model, None)
    asked(
        lambda emit: synth_pairs(store, output, model, settings, provider, judge, questions=questions, **kept, emit=emit),
        as_json,
        _show,
    )


def _show(result: dict[str, Any]) -> None:
    from mlxforge.knowledge.pairs import ABOUT

    for reason, count in result["rejected"].items():
        click.echo(f"no pair: {count:,} {reason} ({ABOUT.get(reason, 'by a person')})")
    tasks = result["tasks"]
    if tasks["failed"] or tasks["open"]:
        click.echo(f"questions: {tasks['done']:,} done, {tasks['failed']:,} failed, {tasks['open']:,} to go")
    for part, file in result["files"].items():
        click.echo(f"wrote {file}: pairs for {part}")
    click.echo(f"{some(result['rows'], 'pair')} from {some(tasks['done'], 'question')}, answers of {result['model']}")
    if result["rejects"]:
        click.echo(f"wrote {result['rejects']}: what made no pair")
