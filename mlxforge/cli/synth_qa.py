"""``mlxforge synth qa``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.shaping import FORCE, JSON, OUTPUT, heading, show_json, show_next, some

if TYPE_CHECKING:
    from mlxforge.knowledge.providers import ProviderSettings

STYLES = "factual,conversational,socratic,problem-solving,multiple-choice,unanswerable"
SHARE = click.FloatRange(0, 1, max_open=True)
DOLLARS = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("store", type=click.Path(path_type=Path), metavar="KB")
@OUTPUT
@click.option("--styles", default=STYLES, metavar="NAMES", help=f"What is asked for, in turn. [default: {STYLES}]")
@click.option("--per-chunk", type=click.IntRange(1, 20), default=3, show_default=True, help="Rows asked for of a chunk.")
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Rows asked for in all; a larger one goes on.")
@click.option("--provider", default="mlx", show_default=True, help="mlx: a model in this process. openai: any such server.")
@click.option(
    "-m", "--model", metavar="MODEL", help="mlx: 'tiny', a folder, a hub id, run:NAME. openai: its name on the server."
)
@click.option("--url", metavar="URL", help="Of an OpenAI-compatible server. [default: $OPENAI_BASE_URL; key: $OPENAI_API_KEY]")
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
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    metavar="SHARE",
    help="Questions this much alike are duplicates.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the sampling and a local model.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True, help="0 takes the likeliest token.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests answered at a time.")
@click.option("--rpm", type=click.FloatRange(0, min_open=True), metavar="N", help="Requests a minute at most.")
@click.option("--timeout", type=DOLLARS, default=120.0, show_default=True, metavar="SECONDS", help="For one reply of a server.")
@click.option("--price-in", type=DOLLARS, metavar="USD", help="Price of a million tokens of prompt.")
@click.option("--price-out", type=DOLLARS, metavar="USD", help="Price of a million tokens of answer.")
@click.option("--max-cost", type=DOLLARS, metavar="USD", help="Ceiling over all runs of the job; needs the prices.")
@click.option("--rejects", type=click.Path(path_type=Path), metavar="FILE", help="Write what the gates refused, with reasons.")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder that holds the runs."
)
@click.option("--redo", is_flag=True, help="Forget what this job made and start anew.")
@click.option("--dry-run", is_flag=True, help="Ask nobody: estimate calls, tokens and cost, and show three prompts.")
@FORCE
@JSON
def qa(store: Path, output: Path, as_json: bool, dry_run: bool, **options: Any) -> None:
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

    given = _settings(options)
    settings = synth.QaSettings(**given)
    reached, judge = _reached(options)
    if dry_run:
        found = synth.estimate(store, settings, reached)
        show_json(found) if as_json else _show_estimate(found)
        return
    result = _asked(store, output, settings, reached, judge, options, as_json)
    if as_json:
        show_json(result)
        return
    _show(result)
    if "train" in result["files"]:
        valid = f" --valid {result['files']['valid']}" if "valid" in result["files"] else ""
        show_next([f"mlxforge synth review {output}", f"mlxforge sft --data {output}{valid}"])


def _asked(store: Path, output: Path, settings: Any, reached: Any, judge: Any, options: dict[str, Any], as_json: bool) -> Any:
    import signal

    from mlxforge.core.errors import MlxforgeError
    from mlxforge.runs.synth import synth_qa
    from mlxforge.ui.bars import bars

    # A server that hangs up while it is written to must be an error, not the silent end of this process.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        with bars() as emit:
            kept = {name: options[name] for name in ("rejects", "redo", "force")}
            return synth_qa(store, output, settings, reached, judge, max_cost=options["max_cost"] or 0.0, **kept, emit=emit)
    except MlxforgeError as error:
        if result := getattr(error, "result", None):
            show_json(result) if as_json else _show(result)
        raise


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    names = ("per_chunk", "limit", "provider", "prompts", "seed", "temperature", "valid", "test", "near")
    given = {name: options[name] for name in names}
    given["styles"] = tuple(word.strip() for word in options["styles"].split(",") if word.strip())
    given |= {"judge": options["judge"] or "", "least_score": options["judge_min"]}
    return given | ({"audience": options["audience"]} if options["audience"] else {})


def _reached(options: dict[str, Any]) -> tuple[ProviderSettings, ProviderSettings | None]:
    """How the provider and, where it is another, the judge are reached."""
    from dataclasses import replace

    from mlxforge.knowledge.providers import ProviderSettings
    from mlxforge.runs.synth import opener

    if options["max_cost"] and not (options["price_in"] and options["price_out"]):
        raise click.UsageError("--max-cost needs --price-in and --price-out")
    if options["url"] and "openai" not in (options["provider"], options["judge"]):
        raise click.UsageError("--url is for --provider openai")
    for name in ("judge_model", "judge_url"):
        if options[name] and not options["judge"]:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --judge")
    reached = ProviderSettings(
        model=options["model"] or "",
        url=options["url"] or "",
        concurrency=options["concurrency"],
        rpm=options["rpm"] or 0.0,
        timeout=options["timeout"],
        price_in=options["price_in"] or 0.0,
        price_out=options["price_out"] or 0.0,
        opener=opener(options["runs_dir"]),
    )
    other = options["judge"] and options["judge"] != options["provider"]
    if not (options["judge_model"] or options["judge_url"] or other):
        return reached, None
    model = options["judge_model"] or ("" if other else reached.model)
    return reached, replace(reached, model=model, url=options["judge_url"] or reached.url)


def _show(result: dict[str, Any]) -> None:
    from mlxforge.knowledge.gates import ABOUT

    tasks = result["tasks"]
    made = ", ".join(f"{style} {count:,}" for style, count in result["styles"].items())
    click.echo(f"rows: {made or 'none'}")
    for gate, count in result["rejected"].items():
        click.echo(f"refused: {count:,} {gate} ({ABOUT[gate]})")
    if tasks["failed"] or tasks["open"]:
        click.echo(f"calls: {tasks['done']:,} done, {tasks['failed']:,} failed, {tasks['open']:,} to go")
    cost = f", ${result['cost']:.4f}" if result["cost"] else ""
    click.echo(
        f"asked {some(result['calls'], 'time')}: {result['prompt_tokens']:,} tokens of prompts, "
        f"{result['completion_tokens']:,} of answers{cost}"
    )
    for part, file in result["files"].items():
        documents = some(result["documents"].get(part, 0), "document")
        click.echo(f"wrote {file}: {some(result['rows'][part], 'row')} for {part}, from {documents}")
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
