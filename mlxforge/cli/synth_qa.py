"""``mlxforge synth qa``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.asking import MAKING, OPTIONS, asked, options, reached, show_calls
from mlxforge.cli.shaping import OUTPUT, Number, heading, show_json, some

if TYPE_CHECKING:
    from mlxforge.knowledge.asked import ProviderSettings

STYLES = "factual,conversational,socratic,problem-solving,multiple-choice,unanswerable"
SHARE = Number(0, 1, max_open=True)


@click.command()
@click.argument("store", type=click.Path(path_type=Path), metavar="KB")
@OUTPUT
@click.option("--styles", default=STYLES, metavar="NAMES", help=f"What is asked for, in turn. [default: {STYLES}]")
@click.option("--per-chunk", type=click.IntRange(1, 20), default=3, show_default=True, help="Rows asked for of a chunk.")
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Rows asked for in all; a larger one goes on.")
@options(*OPTIONS)
@click.option("--audience", metavar="TEXT", help="For whom the questions are, such as 'nurses in their first year'.")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="DIR", help="Prompts to use in place of the shipped ones.")
@click.option("--judge", metavar="PROVIDER", help="Have each row scored too, by the same model unless --judge-model is given.")
@click.option("--judge-model", metavar="MODEL", help="The judge, where it is another model.")
@click.option("--judge-url", metavar="URL", help="The judge's server. [default: --url]")
@click.option("--judge-min", type=click.IntRange(1, 5), default=4, show_default=True, help="Least score that passes, of 5.")
@click.option("--valid", type=SHARE, default=0.05, show_default=True, help="Share of the documents for validation.")
@click.option("--test", type=SHARE, default=0.05, show_default=True, help="Share of the documents for the last test.")
@click.option(
    "--near",
    type=Number(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    metavar="SHARE",
    help="Questions this much alike are duplicates.",
)
@click.option("--temperature", type=Number(0, 2), default=0.7, show_default=True, help="0 takes the likeliest token.")
@options(*MAKING)
def qa(store: Path, output: Path, as_json: bool, dry_run: bool, **given: Any) -> None:
    """Questions and answers from a knowledge base, each held against its passage.

    \b
    mlxforge synth qa kb.sqlite -o sft.jsonl --model mlx-community/Qwen3-4B-Instruct-2507-4bit --limit 500
    mlxforge synth qa kb.sqlite -o sft.jsonl --provider openai --url http://127.0.0.1:11434/v1 --model qwen3:8b
    mlxforge synth qa kb.sqlite -o sft.jsonl --provider openai --price-in 0.15 --price-out 0.6 --max-cost 2 --dry-run

    Documents are split into sft.jsonl, sft.valid.jsonl and sft.test.jsonl before anything is asked. Chunks are sampled evenly.
    A local model's answers are held to their JSON schema while they are decoded. Rows must pass gates: form, length, no talk of
    a text that the reader has not, a question that says what it is about, an answer that its passage bears, no duplicate.

    The job is in the store: a run that was stopped or killed goes on with the same command.
    """
    from mlxforge.runs import synth
    from mlxforge.runs.synth_rows import QaSettings

    settings = QaSettings(**_settings(given))
    there, judge = _reached(given)
    if dry_run:
        found = synth.estimate(store, settings, there)
        show_json(found) if as_json else _show_estimate(found)
        return
    kept = {name: given[name] for name in ("rejects", "redo", "force")}
    make = partial(synth.synth_qa, store, output, settings, there, judge, max_cost=given["max_cost"] or 0.0, **kept)
    asked(make, as_json, _show)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    names = ("per_chunk", "limit", "provider", "prompts", "seed", "temperature", "valid", "test", "near")
    chosen = {name: given[name] for name in names}
    chosen["styles"] = tuple(word.strip() for word in given["styles"].split(",") if word.strip())
    chosen |= {"judge": given["judge"] or "", "least_score": given["judge_min"]}
    return chosen | ({"audience": given["audience"]} if given["audience"] else {})


def _reached(given: dict[str, Any]) -> tuple[ProviderSettings, ProviderSettings | None]:
    """How the provider and, where it is another, the judge are reached."""
    from dataclasses import replace

    if given["url"] and "openai" not in (given["provider"], given["judge"]):
        raise click.UsageError("--url is for --provider openai")
    for name in ("judge_model", "judge_url"):
        if given[name] and not given["judge"]:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --judge")
    there = reached(given, given["model"], given["url"])
    other = given["judge"] and given["judge"] != given["provider"]
    if not (given["judge_model"] or given["judge_url"] or other):
        return there, None
    model = given["judge_model"] or ("" if other else there.model)
    return there, replace(there, model=model, url=given["judge_url"] or there.url)


def _show(result: dict[str, Any]) -> None:
    from mlxforge.knowledge.gates import ABOUT

    show_calls(result, ABOUT)
    for part, file in result["files"].items():
        documents = some(result["documents"].get(part, 0), "document")
        click.echo(f"wrote {file}: {some(result['rows'][part], 'row')} for {part}, which has {documents}")
    if result.get("rejects"):
        click.echo(f"wrote {result['rejects']}: what the gates refused")


def _show_estimate(found: dict[str, Any]) -> None:
    for prompt in found["prompts"]:
        click.echo(heading(f"{prompt['style']}, for {prompt['split']}"))
        for turn in prompt["messages"]:
            click.echo(f"[{turn['role']}]\n{turn['content']}\n")
    documents = ", ".join(f"{count:,} for {part}" for part, count in found["documents"].items())
    click.echo(f"documents: {documents}")
    click.echo(f"calls: {found['tasks']:,}, for {some(found['rows'], 'row')}")
    answers = found["completion_tokens"]
    most = f"{answers['expected']:,} of answers, {answers['most']:,} at most"
    click.echo(f"tokens: about {found['prompt_tokens']:,} of prompts and {most}")
    if found["cost"]["most"]:
        click.echo(f"cost: about ${found['cost']['expected']:.2f}, ${found['cost']['most']:.2f} at most")
