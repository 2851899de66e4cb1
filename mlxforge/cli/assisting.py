"""Options of ``mlxforge eval`` that bring in others: a knowledge base, a judge, another suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

RAG = (
    click.option(
        "--rag", type=click.Path(path_type=Path), metavar="KB",
        help="Ask the questions with passages of a knowledge base too: found by BM25, and the one each row names.",
    ),
    click.option("--top-k", type=click.IntRange(1, 100), metavar="N", help="Passages in a prompt. [default: 3]"),
    click.option(
        "--prompts", type=click.Path(path_type=Path), metavar="DIR", help="Prompts to use in place of the shipped ones."
    ),
)  # fmt: skip


def check(given: dict[str, Any]) -> None:
    """Refuses options without the one that they belong to.

    Raises:
        click.UsageError: naming both.
    """
    if given["top_k"] and not given["rag"]:
        raise click.UsageError("--top-k needs --rag KB")
    if given["prompts"] and not given["rag"]:
        raise click.UsageError("--prompts needs --rag")
