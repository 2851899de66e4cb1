"""``mlxforge data pairs``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.data_check import FORMAT, MAP, parse_map
from mlxforge.cli.shaping import FORCE, JSON, OUTPUT, SKIP_BAD, Number, show_json, show_next, some

if TYPE_CHECKING:
    from mlxforge.runs.judges import Judge

GIVEN = click.core.ParameterSource.COMMANDLINE
# What means nothing where answers have scores already, and what means nothing without a judge.
DRAWING = ("model", "samples", "temperature", "max_tokens", "seed", "limit")
JUDGING = ("pairwise", "judge_model", "judge_tokens", "judge_timeout")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("-m", "--model", metavar="MODEL", help="'tiny', a folder, a hub id, or run:NAME[@STEP]. [default: the last run]")
@click.option(
    "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder that holds the runs."
)
@OUTPUT
@click.option("--samples", type=click.IntRange(1, 64), default=4, show_default=True, help="Answers drawn for each prompt.")
@click.option(
    "--temperature",
    type=Number(0, 10, min_open=True),
    default=1.0,
    show_default=True,
    help="1 draws as the model weighs its tokens.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Longer answers are dropped and counted."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same answers to a row.")
@click.option("--per-row", type=click.IntRange(min=1), default=1, show_default=True, help="Pairs of a prompt at most.")
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Take the first rows only.")
@click.option("--judge", "command", metavar="COMMAND", help="Score answers with a command: JSON on stdin, a number on stdout.")
@click.option("--pairwise", is_flag=True, help="The command compares two answers instead: 1, 2, or 0 for a tie.")
@click.option(
    "--judge-url", metavar="URL", help="Compare answers with a model behind OpenAI's protocol (key: $OPENAI_API_KEY)."
)
@click.option("--judge-model", metavar="NAME", help="The judge's name on its server. [default: the only one it has]")
@click.option(
    "--judge-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Tokens of the judge's reply at most."
)
@click.option(
    "--judge-timeout",
    type=Number(0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="For one judgement.",
)
@click.option("--from-scores", is_flag=True, help="FILE holds prompt, response, reward: pair the best with the worst.")
@FORMAT
@MAP
@SKIP_BAD
@FORCE
@JSON
@click.pass_context
def pairs(
    context: click.Context,
    /,
    files: tuple[str, ...],
    output: Path,
    from_scores: bool,
    format_name: str | None,
    pairs: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Make preference data: pairs of a better and a worse answer.

    \b
    mlxforge data pairs sample:handbook/questions.train.jsonl --model run:my-sft -o pairs.jsonl
    mlxforge data pairs prompts.jsonl --model run:my-sft --judge "python score.py" -o pairs.jsonl
    mlxforge data pairs prompts.jsonl --model run:my-sft --judge-url http://127.0.0.1:8080/v1 -o pairs.jsonl
    mlxforge data pairs scored.jsonl --from-scores -o pairs.jsonl

    FILE holds conversations. The model answers the last prompt of each several times. Without a judge the row's own answer is
    the better one and a sample that differs the worse. A command is started for each judgement: it gets one JSON object
    {"prompt": [turns], "gold": TEXT, "answer": TEXT} on stdin (with --pairwise "answers": [TEXT, TEXT]) and prints a number;
    the highest is paired with the lowest. A judge behind a URL compares two answers in both orders; only
    what wins twice counts.

    A run that was stopped goes on with the same command: finished rows are kept in a .partial file beside the output.
    """
    from mlxforge.ui.listen import listeners

    _agree(context)
    reading = {
        "format": format_name,
        "mapping": parse_map(pairs),
        "skip_bad": options.pop("skip_bad"),
        "force": options.pop("force"),
    }
    with listeners("json") as emit:
        if from_scores:
            from mlxforge.runs.make_pairs import pairs_from_scores

            result = pairs_from_scores(files, output, per_row=options["per_row"], **reading, emit=emit)
        else:
            result = _drawn(files, output, **options, reading=reading, emit=emit)
    if as_json:
        show_json(result)
    else:
        _show(result)
    if result["output"] is None:
        from mlxforge.core.errors import DataError

        reasons = ", ".join(f"{reason} {count:,}" for reason, count in result["dropped"].items())
        raise DataError(f"no pair: nothing was written ({reasons})", where=", ".join(files))


def _agree(context: click.Context) -> None:
    """Options that exclude each other, or that would do nothing."""
    ways = [flag for flag, name in (("--judge", "command"), ("--judge-url", "judge_url"), ("--from-scores", "from_scores"))
            if context.params[name]]  # fmt: skip
    if len(ways) > 1:
        raise click.UsageError(f"{ways[0]} and {ways[1]}: give one of them")
    by = ways[0] if ways else ""
    idle = {
        **(dict.fromkeys(DRAWING, "nothing is drawn with --from-scores") if by == "--from-scores" else {}),
        **dict.fromkeys(JUDGING, "no judge is given: --judge or --judge-url"),
    }
    if by == "--judge":
        idle = dict.fromkeys(("judge_model", "judge_tokens"), "it is for --judge-url")
    elif by == "--judge-url":
        idle = {"pairwise": "it is for --judge: a judge behind a URL always compares"}
    for name, reason in idle.items():
        if context.get_parameter_source(name) is GIVEN:
            raise click.UsageError(f"--{name.replace('_', '-')}: {reason}")


def _drawn(
    files: tuple[str, ...],
    output: Path,
    model: str | None,
    runs_dir: Path,
    limit: int | None,
    reading: dict[str, Any],
    emit: Any,
    **options: Any,
) -> dict[str, Any]:
    from mlxforge.cli.generate import chosen
    from mlxforge.runs.make_pairs import PairSettings, make_pairs

    named = ("samples", "temperature", "max_tokens", "per_row", "seed")
    settings = PairSettings(**{name: options.pop(name) for name in named})
    judge = _judge(**options)
    model = chosen(model, runs_dir)
    return make_pairs(
        files, output, model, runs_dir=runs_dir, settings=settings, judge=judge, limit=limit, **reading, emit=emit
    )


def _judge(
    command: str | None, pairwise: bool, judge_url: str | None, judge_model: str | None, judge_tokens: int, judge_timeout: float
) -> Judge | None:
    if command is not None:
        from mlxforge.runs.judges import CommandJudge

        return CommandJudge(command, pairwise, judge_timeout)
    if judge_url is None:
        return None
    import signal

    from mlxforge.runs.judge_server import UrlJudge

    # A server that hangs up while it is written to must be an error, not the silent end of this process.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    judge = UrlJudge(judge_url, judge_model or "", judge_timeout, judge_tokens)
    if judge.withholds_key:
        click.echo(
            "note: $OPENAI_API_KEY is not sent over http:// to another machine, where all on the way could read it", err=True
        )
    return judge


def _show(result: dict[str, Any]) -> None:
    if result["dropped"]:
        click.echo("dropped: " + ", ".join(f"{reason} ({count:,})" for reason, count in result["dropped"].items()))
    if result["output"]:
        drawn = f", {some(result['samples'], 'sample')} of {result['model']}" if result["model"] else ""
        click.echo(f"wrote {result['output']}: {some(result['pairs'], 'pair')} from {some(result['rows'], 'row')}{drawn}")
    show_next(result["next"])
