"""Options of ``mlxforge eval`` that bring in others: a knowledge base, a judge, another suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.asking import POSITIVE, reached, show_estimate
from mlxforge.cli.shaping import some

if TYPE_CHECKING:
    from mlxforge.runs.eval_job import JudgeSettings, SuiteSettings

RAG = (
    click.option(
        "--rag", type=click.Path(path_type=Path), metavar="KB",
        help="Ask the questions with passages of a knowledge base too: found by BM25, and the one each row names.",
    ),
    click.option("--top-k", type=click.IntRange(1, 100), metavar="N", help="Passages in a prompt. [default: 3]"),
)  # fmt: skip
JUDGE = (
    click.option("--judge", metavar="PROVIDER", help="Have answers judged. mlx: a model in this process. openai: any server."),
    click.option("--judge-model", metavar="MODEL", help="The judge. mlx: as MODEL. openai: its name on the server."),
    click.option("--judge-url", metavar="URL", help="The judge's server. [default: $OPENAI_BASE_URL; key: $OPENAI_API_KEY]"),
    click.option(
        "--judge-concurrency", "concurrency", type=click.IntRange(1, 256), metavar="N", help="Questions at a time. [default: 8]"
    ),
    click.option("--judge-rpm", "rpm", type=POSITIVE, metavar="N", help="Questions a minute at most."),
    click.option("--judge-timeout", "timeout", type=POSITIVE, metavar="SECONDS", help="For one reply. [default: 120]"),
    click.option("--price-in", type=POSITIVE, metavar="USD", help="Price of a million tokens of the judge's prompts."),
    click.option("--price-out", type=POSITIVE, metavar="USD", help="Price of a million tokens of its answers."),
    click.option("--max-cost", type=POSITIVE, metavar="USD", help="Ceiling of the judge's cost; needs the prices."),
)
SUITE = (
    click.option("--suite", metavar="NAME", help="Tasks of another suite in the same report: lm-eval (lm-evaluation-harness)."),
    click.option("--tasks", multiple=True, metavar="NAMES", help="Its tasks, parted by commas; YAML files and folders too."),
    click.option("--shots", type=click.IntRange(min=0), metavar="N", help="Examples in its prompts. [default: the task's own]"),
    click.option("--apply-chat-template", "chat", is_flag=True, help="Put its prompts through the chat template."),
)
PROMPTS = click.option(
    "--prompts", type=click.Path(path_type=Path), metavar="DIR", help="Prompts to use in place of the shipped ones."
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Ask nobody: show sets, metrics, and what the judge would cost.")
# Option -> those of which it needs one.
NEEDS = {
    "top_k": ("rag",),
    "prompts": ("rag", "judge"),
    **dict.fromkeys(("tasks", "shots", "chat"), ("suite",)),
    **dict.fromkeys(
        ("judge_model", "judge_url", "concurrency", "rpm", "timeout", "price_in", "price_out", "max_cost"), ("judge",)
    ),
}
FLAGS = {
    "chat": "--apply-chat-template",
    "concurrency": "--judge-concurrency",
    "rpm": "--judge-rpm",
    "timeout": "--judge-timeout",
}


def assisted(given: dict[str, Any]) -> dict[str, Any]:
    """The options of an evaluation with those of this file as its settings have them.

    Raises:
        click.UsageError: an option without the one that it belongs to.
    """
    for name, needs in NEEDS.items():
        if given[name] not in (None, ()) and given[name] is not False and not any(given[need] for need in needs):
            told = " or ".join(f"--{need}" for need in needs)
            raise click.UsageError(f"{FLAGS.get(name, '--' + name.replace('_', '-'))} needs {told}")
    judge = _judge(given) if given["judge"] else None
    kept = {name: value for name, value in given.items() if name not in NEEDS}
    more = {"judge": judge, "suite": _suite(given) if given["suite"] else None}
    return {**kept, "top_k": given["top_k"] or 3, "prompts": given["prompts"], **more}


def _suite(given: dict[str, Any]) -> SuiteSettings:
    from mlxforge.runs.eval_job import SuiteSettings

    tasks = tuple(name for one in given["tasks"] for name in one.replace(",", " ").split())
    return SuiteSettings(suite=given["suite"], tasks=tasks, shots=given["shots"], chat=given["chat"])


def _judge(given: dict[str, Any]) -> JudgeSettings:
    from mlxforge.runs.eval_job import JudgeSettings

    if given["judge_url"] and given["judge"] == "mlx":
        raise click.UsageError("--judge-url is for --judge openai")
    usual = {"concurrency": given["concurrency"] or 8, "timeout": given["timeout"] or 120.0}
    there = reached({**given, **usual}, given["judge_model"], given["judge_url"])
    return JudgeSettings(provider=given["judge"], reached=there, max_cost=given["max_cost"] or 0.0)


def show_plan(found: dict[str, Any]) -> None:
    """What an evaluation would ask."""
    click.echo(f"models: {', '.join(found['models'])}")
    for one in found["sets"]:
        click.echo(f"{one['name']}: {some(one['rows'], 'row')} of {one['kind']}: {', '.join(one['metrics'])}")
    if found["tasks"]:
        click.echo(f"tasks: {', '.join(found['tasks'])}")
    if found["judge"]:
        show_estimate(found["judge"])
