"""``mlxforge synth expand``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from mlxforge.cli.asking import MAKING, OPTIONS, asked, options, reached, show_estimate, show_made
from mlxforge.cli.shaping import OUTPUT, Number, show_json, some

WAYS = ("plain", "model")


@click.command()
@click.argument("store", type=click.Path(path_type=Path), metavar="KB")
@OUTPUT
@click.option(
    "--entities", type=click.Choice(WAYS), default="plain", show_default=True,
    help="How entities are found: by capital letters, headings and repetition, or by asking the model, a call a chunk.",
)  # fmt: skip
@click.option("--most-entities", type=click.IntRange(1, 100), default=12, show_default=True, help="Of a document, at most.")
@click.option("--sizes", default="1,2,3", show_default=True, metavar="LIST", help="Entities that a passage is about.")
@click.option("--per-document", type=click.IntRange(1), default=24, show_default=True, help="Passages of a document at most.")
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Passages in all; a larger one goes on.")
@click.option(
    "--context", type=click.IntRange(100), default=1500, show_default=True, metavar="TOKENS",
    help="Of the chunks that a passage is written from.",
)  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(256), default=1024, show_default=True, help="Of a passage at most.")
@click.option("--audience", metavar="TEXT", help="For whom the passages are, such as 'nurses in their first year'.")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="DIR", help="Prompts to use in place of the shipped ones.")
@click.option(
    "--near", type=Number(0, 1, min_open=True), default=0.8, show_default=True, metavar="SHARE",
    help="Passages this much alike are duplicates.",
)  # fmt: skip
@click.option("--temperature", type=Number(0, 2), default=0.7, show_default=True, help="0 takes the likeliest token.")
@options(*OPTIONS, *MAKING)
def expand(store: Path, output: Path, as_json: bool, dry_run: bool, **given: Any) -> None:
    """Passages about a document's entities, one by one and together, for continued pre-training of few documents.

    \b
    mlxforge synth expand kb.sqlite -o passages.jsonl --model mlx-community/Qwen3-4B-Instruct-2507-4bit --limit 500
    mlxforge synth expand kb.sqlite -o passages.jsonl --provider openai --url http://127.0.0.1:11434/v1 --model qwen3:8b
    mlxforge synth expand kb.sqlite -o passages.jsonl --dry-run

    A model learns facts from many wordings. For every document its entities are found, then a passage is asked for about each,
    and about pairs and triples of them, from the chunks that name them (EntiGraph, arXiv 2409.07431). Passages must pass gates:
    form, length, no talk of a text that the reader has not, all entities named, names and numbers that the source has, no
    copy of the source, no duplicate.

    The job is in the store: a run that was stopped or killed goes on with the same command.
    """
    from mlxforge.knowledge.expand import ABOUT
    from mlxforge.runs.synth_expand import ExpandSettings, estimate_expand, synth_expand

    names = ("entities", "most_entities", "per_document", "limit", "context", "max_tokens", "provider", "prompts", "seed")
    settings = ExpandSettings(
        **{name: given[name] for name in (*names, "temperature", "near")},
        sizes=_sizes(given["sizes"]),
        **({"audience": given["audience"]} if given["audience"] else {}),
    )
    if given["url"] and given["provider"] != "openai":
        raise click.UsageError("--url is for --provider openai")
    provider = reached(given, given["model"], given["url"])
    if dry_run:
        found = estimate_expand(store, settings, provider)
        show_json(found) if as_json else _show_estimate(found)
        return
    kept = {name: given[name] for name in ("rejects", "redo", "force")} | {"max_cost": given["max_cost"] or 0.0}
    asked(
        lambda emit: synth_expand(store, output, settings, provider, **kept, emit=emit),
        as_json,
        partial(show_made, about=ABOUT),
    )


def _sizes(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise click.BadParameter(f"'{text}' is no list such as 1,2", param_hint="--sizes")
    return tuple(map(int, words))


def _show_estimate(found: dict[str, Any]) -> None:
    for title, names in found["entities"].items():
        click.echo(f"{title}: {', '.join(names) or 'no entities'}")
    if found["documents"] > len(found["entities"]):
        click.echo(f"and {some(found['documents'] - len(found['entities']), 'more document')}")
    click.echo("")
    show_estimate(found)
