"""Makes preference data: a model's samples against the right answers, judged samples, or scored answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import ConfigError, Interrupted, RunFailed
from mlxforge.core.events import Emit, Noted, Progress, Warned, ignore
from mlxforge.core.files import bytes_hash, file_hash
from mlxforge.core.rows import Chat, Preference, Reward
from mlxforge.data.formats import read_rows
from mlxforge.data.output import check_outputs, new_file
from mlxforge.data.readers import Reading
from mlxforge.data.sources import content_key
from mlxforge.models.adapters import adapter_file
from mlxforge.runs.draw_pairs import SAMPLES, UNWRITABLE, Maker, Outcome, PairSettings, Task, pair_row
from mlxforge.runs.judges import TIES, Judge, ranked
from mlxforge.runs.opening import RUN, Base, open_model, resolve_base
from mlxforge.runs.partial import Partial, partial
from mlxforge.runs.shape_data import finish, inputs_of

__all__ = ["PairSettings", "make_pairs", "pairs_from_scores"]

VERSION = 1  # of what is drawn for a row: a change of samples needs a new one
SCORES = "scores"
AGAIN, WITHOUT = "rows that repeat another", "rows without a pair"
SAME, SINGLE = "pairs of equal answers", "prompts with one answer"


def make_pairs(
    specs: Sequence[str],
    output: Path,
    model: str,
    *,
    runs_dir: Path = Path("runs"),
    settings: PairSettings | None = None,
    judge: Judge | None = None,
    limit: int | None = None,
    format: str | None = None,  # noqa: A002
    mapping: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Pairs from a model's own samples, written with where each came from and how it was made.

    Without a judge a row's own answer is chosen and a sample that differs from it rejected; with one, both are samples.
    Finished rows are kept in ``OUTPUT.partial``: the same call goes on from there, and ends with what it would have written
    in one go.

    Args:
        model: as :func:`mlxforge.runs.opening.open_model` takes it.
        limit: read only so many of the rows.

    Returns:
        ``output`` (None where there is no pair: nothing is written), ``pairs``, ``rows``, ``samples``, ``dropped`` (counts by
        reason), ``skipped`` (bad rows), ``resumed`` (rows that were done before), ``way``, ``model``, ``judge``, ``next``.

    Raises:
        ConfigError: settings out of bounds.
        DataError: bad rows, an output that is there already, or a partial file of other settings.
        RunError, ModelError: the model cannot be opened.
        RunFailed: the judge does not work; finished rows are kept.
        Interrupted: by Ctrl-C; finished rows are kept.
    """
    settings = settings or PairSettings()
    if judge is not None and settings.samples < 2:
        raise ConfigError("a judge compares two samples at least", where="samples", fix="--samples 2 or more")
    check_outputs([output], force)
    base = resolve_base(model, runs_dir)
    inputs, named = inputs_of(specs, emit), _name(model, base)
    reading = Reading(skip_bad=skip_bad)
    items = read_rows(inputs, "chat", format=format, mapping=mapping, reading=reading)
    tasks = [_task(item.row, item.origin) for item in items if isinstance(item.row, Chat)]
    finish(reading, len(tasks), list(specs), emit)
    tasks = tasks[:limit]
    job = {
        "version": VERSION,
        "data": content_key(inputs),
        "format": format,
        "mapping": dict(mapping or {}),
        "limit": limit,
        "model": named,
        "weights": file_hash(adapter_file(base.adapter)) if base.adapter else base.model,
        **asdict(settings),
        "judge": judge and repr(judge),
    }
    with partial(output, job, anew=force) as kept:
        result, resumed = _made(tasks, kept, lambda: Maker(open_model(model, runs_dir), settings, judge), output, emit)
    return result | {
        "rows": len(tasks),
        "skipped": reading.skipped,
        "resumed": resumed,
        "way": judge.way if judge else SAMPLES,
        "model": named,
        "judge": judge.name if judge else None,
        "next": _next(result["output"], named),
    }


def _made(
    tasks: Sequence[Task], kept: Partial, maker: Callable[[], Maker], output: Path, emit: Emit
) -> tuple[dict[str, Any], int]:
    """Finishes the rows and writes their pairs; a row that repeats another is dropped. Returns how many were done before."""
    unique = list({task.key: task for task in reversed(tasks)}.values())[::-1]
    resumed = sum(task.key in kept for task in unique)
    if resumed:
        emit(Noted(message=f"{resumed:,} of {len(unique):,} rows were done before: {kept.path}"))
    _work(unique, kept, maker, emit)
    dropped = Counter({AGAIN: len(tasks) - len(unique)})
    return _write(output, (kept[task.key] for task in unique), dropped), resumed


def _name(model: str, base: Base) -> str:
    """As :attr:`mlxforge.runs.opening.Opened.name` will be."""
    return base.named if base.run and model.startswith(RUN) else model


def _task(row: Chat, origin: str) -> Task:
    """The last prompt of a conversation and its answer."""
    key = bytes_hash(msgspec.json.encode((row.messages, row.tools)))
    return Task(row.messages[:-1], row.messages[-1], row.tools, origin, key)


def _work(tasks: Sequence[Task], kept: Partial, make: Callable[[], Maker], emit: Emit) -> None:
    """Finishes what is not finished; the model is loaded only if something is."""
    left = [task for task in tasks if task.key not in kept]
    maker = make() if left else None
    told = False
    for number, task in enumerate(left, len(tasks) - len(left) + 1):
        assert maker is not None
        try:
            outcome = maker(task)
        except KeyboardInterrupt:
            what = f"stopped after {number - 1:,} of {len(tasks):,} rows"
            raise Interrupted(what, where=str(kept.path), fix="the same command goes on") from None
        except RunFailed as error:
            more = f"{number - 1:,} of {len(tasks):,} rows are done: the same command goes on"
            raise RunFailed(error.what, where=error.where, fix="; ".join(filter(None, (error.fix, more)))) from None
        kept.add(task.key, msgspec.to_builtins(outcome))
        if outcome.unclear and not told:
            told = True
            emit(Warned(message=f"{task.origin}: the judge gave no verdict but said: {outcome.unclear}"))
        emit(Progress(task="making pairs", done=number, total=len(tasks), unit="rows"))


def _write(output: Path, outcomes: Iterator[Mapping[str, Any]], dropped: Counter[str]) -> dict[str, Any]:
    pairs = samples = 0
    lines: list[bytes] = []
    for outcome in outcomes:
        lines += [msgspec.json.encode(pair) + b"\n" for pair in outcome["pairs"]]
        pairs, samples = pairs + len(outcome["pairs"]), samples + outcome["samples"]
        dropped.update(outcome["dropped"])
        dropped[WITHOUT] += not outcome["pairs"]
    if pairs:
        with new_file(output) as file:
            file.writelines(lines)
    counts = {reason: count for reason, count in dropped.most_common() if count}
    return {"output": str(output) if pairs else None, "pairs": pairs, "samples": samples, "dropped": counts}


def _next(output: str | None, model: str | None) -> list[str]:
    named = f"--model {model} " if model else ""
    return [f"mlxforge data check {output} --method dpo", f"mlxforge dpo {named}--data {output}"] if output else []


def pairs_from_scores(
    specs: Sequence[str],
    output: Path,
    *,
    per_row: int = 1,
    format: str | None = None,  # noqa: A002
    mapping: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Pairs from rows of prompt, response and reward: the best answer to each prompt with its worst, and so on inwards.

    Args:
        per_row: pairs of a prompt at most.

    Returns:
        As :func:`make_pairs`; ``rows`` are scored answers.

    Raises:
        DataError: bad rows, or an output that is there already.
    """
    check_outputs([output], force)
    reading = Reading(skip_bad=skip_bad)
    by_prompt: dict[bytes, list[tuple[Reward, str]]] = {}
    rows = 0
    for item in read_rows(inputs_of(specs, emit), "reward", format=format, mapping=mapping, reading=reading):
        assert isinstance(item.row, Reward)
        by_prompt.setdefault(msgspec.json.encode((item.row.prompt, item.row.tools)), []).append((item.row, item.origin))
        rows += 1
    finish(reading, rows, list(specs), emit)
    result = _write(output, (msgspec.to_builtins(_scored(answers, per_row)) for answers in by_prompt.values()), Counter())
    result["dropped"].pop(WITHOUT, None)  # prompts, which the other reasons count
    return result | {
        "rows": rows,
        "skipped": reading.skipped,
        "resumed": 0,
        "way": SCORES,
        "model": None,
        "judge": None,
        "next": _next(result["output"], None),
    }


def _scored(answers: list[tuple[Reward, str]], per_row: int) -> Outcome:
    """The pairs of one prompt."""
    outcome = Outcome()
    found = list(ranked([row.reward for row, _ in answers], per_row))
    if not found:
        outcome.dropped[TIES if len(answers) > 1 else SINGLE] += 1
    for better, worse, _ in found:
        (best, origin), (worst, _) = answers[better], answers[worse]
        made_by = {"way": SCORES, "scores": {"chosen": best.reward, "rejected": worst.reward}}
        if best.completion == worst.completion:
            outcome.dropped[SAME] += 1
        elif values := pair_row(Preference(best.prompt, best.completion, worst.completion, best.tools), origin, made_by):
            outcome.pairs.append(values)
        else:
            outcome.dropped[UNWRITABLE] += 1
    return outcome
