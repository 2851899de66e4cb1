"""Preference pairs from questions about documents: a model's own answer, without the text, against a grounded one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mlxforge.core.errors import DataError, RunFailed
from mlxforge.core.events import Emit, Noted, Progress, ignore
from mlxforge.core.files import file_hash
from mlxforge.core.rows import Chat
from mlxforge.data.formats import Detector, RowReader
from mlxforge.data.output import check_outputs, new_file
from mlxforge.data.readers import Reading
from mlxforge.data.splits import PARTS
from mlxforge.knowledge import pairs
from mlxforge.knowledge.asked import ProviderSettings, Purse, Reply, Request
from mlxforge.knowledge.jobs import REJECTED, Job, Task, job_key
from mlxforge.knowledge.pairs import Asked
from mlxforge.knowledge.providers import PROVIDERS, Provider, provider
from mlxforge.knowledge.store import Store, open_store
from mlxforge.knowledge.templates import Prompt, read_prompt
from mlxforge.models.adapters import adapter_file
from mlxforge.runs.compare_answers import JUDGE_TOKENS, RULES, Compared, Comparer, GroundedSettings
from mlxforge.runs.judge_server import comparison
from mlxforge.runs.opening import resolve_base
from mlxforge.runs.review import keep_reviews
from mlxforge.runs.shape_data import finish as finish_reading
from mlxforge.runs.shape_data import inputs_of
from mlxforge.runs.synth import EXPECTED, LETTERS_A_TOKEN, SHOWN, Outputs, alone, note_smaller, others
from mlxforge.runs.synth_expand import told

KIND = "pairs"
TOGETHER = 4  # times the concurrency: questions whose answers are compared together


def synth_pairs(
    store_path: Path,
    output: Path,
    model: str,
    settings: GroundedSettings,
    reached: ProviderSettings,
    judge: ProviderSettings | None = None,
    *,
    runs_dir: Path = Path("runs"),
    questions: Sequence[str] = (),
    max_cost: float = 0.0,
    rejects: Path | None = None,
    redo: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Asks what is not yet asked, then writes all pairs. The state is in the store: it may be killed at any moment.

    Args:
        model: the model whose own answers are the worse ones, as :func:`mlxforge.runs.opening.open_model` takes it.
        reached: how it runs; ``judge`` how a judge that is a provider is reached.
        questions: chat files to take the questions from, in place of the store's rows.

    Returns:
        ``output``, ``files`` (by split), ``job``, ``model``, ``tasks`` (by state), ``rows``, ``styles`` (of the pairs),
        ``rejected`` (by reason), ``again`` (questions that repeat another), ``calls``, ``prompt_tokens``,
        ``completion_tokens``, ``cost``, ``rejects``, ``next``.

    Raises:
        ConfigError, DataError: settings, questions or files that cannot be used, or no pair.
        RunError, ModelError: the model cannot be opened.
        RunFailed: a provider failed; what is made is kept and written.
        Interrupted: the same at Ctrl-C.
    """
    outputs = Outputs(output, rejects)
    check_outputs(outputs.all, force=True)
    keep_reviews(outputs.all, force)
    base = resolve_base(model, runs_dir)
    prompt = read_prompt("open-book", settings.prompts)
    purse = Purse(max_cost)
    with open_store(store_path) as store, ExitStack() as until_the_end:
        tasks, again = plan(store, settings, questions, emit)
        judging = _judge(settings, judge, purse)
        weights = file_hash(adapter_file(base.adapter)) if base.adapter else base.model
        deciding = decisive(settings, model, weights, prompt, judging, pairs.digest(store, tasks))
        check_outputs(others(outputs.all, job_key(KIND, deciding)), force)
        until_the_end.enter_context(alone(store_path, job_key(KIND, deciding)))
        job = Job.open(store, KIND, deciding, tasks[: settings.limit], redo=redo)
        note_smaller(job, tasks[: settings.limit], settings.limit, emit)
        purse.spent = job.usage.cost
        stopped: BaseException | None = None
        try:
            if job.states["open"]:
                asked = provider("mlx", replace(reached, model=model))
                _work(job, Comparer(store, settings, asked, judging, prompt, job.key), reached.concurrency, emit)
        except (RunFailed, KeyboardInterrupt) as error:
            stopped = error
        result = finish(job, outputs, model, emit) | {"again": again}
    return told(result, stopped)


def plan(store: Store, settings: GroundedSettings, questions: Sequence[str], emit: Emit) -> tuple[list[Task], int]:
    """A task for each question, and how many repeat another.

    Raises:
        DataError: bad rows, no question, or none with the chunk that it needs.
    """
    asked = list(_given(store, questions, emit)) if questions else list(pairs.stored(store))
    if not asked:
        fix = "mlxforge synth qa makes some, or name a chat file: --questions FILE"
        raise DataError("no accepted questions in this knowledge base", where=str(store.path), fix=fix)
    if settings.grounded == "open-book":
        known = [one for one in asked if one.chunk is not None]
        if len(known) < len(asked):
            emit(Noted(message=f"left out: {len(asked) - len(known):,} questions without a chunk of this knowledge base"))
        if not known:
            raise DataError("no question names a chunk of this knowledge base", where=str(store.path), fix="--grounded gold")
        asked = known
    return pairs.plan(asked)


def _given(store: Store, questions: Sequence[str], emit: Emit) -> Iterator[Asked]:
    reading = Reading()
    inputs = inputs_of(list(questions), emit)
    found: list[Asked] = []
    for given in inputs:
        for record in RowReader(Detector(), reading, ("chat",))(given):
            for row in record.rows:
                if isinstance(row, Chat) and (
                    row.tools or any(turn.role == "tool" or turn.tool_calls for turn in row.messages)
                ):
                    reading.leave("conversations with tools")
                elif isinstance(row, Chat) and row.messages[-1].role == "assistant":
                    found.append(pairs.given(store, row, record.values.get("source"), record.origin))
                else:
                    reading.problem("no conversation that ends with an answer", record.origin)
    finish_reading(reading, len(found), list(questions), emit)
    return iter(found)


def decisive(
    settings: GroundedSettings, model: str, weights: str, prompt: Prompt, judge: Provider | None, questions: str
) -> dict[str, Any]:
    """All that decides the pairs: what makes one job another than a second."""
    named = ("grounded", "judge", "max_tokens", "temperature", "seed")
    return {
        **{name: getattr(settings, name) for name in named},
        "judge_model": judge.model if judge else "",
        "model": model,
        "weights": weights,
        "prompt": prompt.hash if settings.grounded == "open-book" else "",
        "questions": questions,
    }


def _judge(settings: GroundedSettings, reached: ProviderSettings | None, purse: Purse) -> Provider | None:
    if settings.judge in RULES:
        return None
    return provider(settings.judge, replace(reached or ProviderSettings(), purse=purse))


def _work(job: Job, compare: Comparer, concurrency: int, emit: Emit) -> None:
    """Compares all open questions, some together; each is kept with what became of it."""
    states, tasks = job.states, job.open_tasks()
    total, done = states.total(), states.total() - states["open"]
    emit(Progress(task="comparing answers", done=done, total=total, unit="questions"))
    while some := list(islice(tasks, TOGETHER * concurrency)):
        for one in compare(some):
            if one.error is not None:
                job.fail(one.task, one.error.error, one.usage, later=one.error.later)
            else:
                job.finish(one.task, [compare.row(one)], one.usage)
            done += 1
        emit(Progress(task="comparing answers", done=done, total=total, unit="questions"))
        if compare.stopped is not None:
            raise compare.stopped


def finish(job: Job, outputs: Outputs, model: str, emit: Emit) -> dict[str, Any]:
    """Writes what the store has of a job; returns what it came to."""
    rows, styles, rejected = Counter[str](), Counter[str](), Counter[str]()
    for count in job.counts():
        if count["verdict"] == REJECTED:
            rejected[count["gate"]] += count["number"]
        else:
            rows[count["split"]] += count["number"]
            styles[count["style"]] += count["number"]
    files = {part: str(outputs.part(part)) for part in PARTS if rows[part]}
    for part in PARTS:
        if part not in files:
            # Rows of an older state of this job, or that would stand beside rows of another job.
            if files or not others([outputs.part(part)], job.key):
                outputs.part(part).unlink(missing_ok=True)
            continue
        with new_file(outputs.part(part)) as file:
            file.writelines(_line(row["content"]) for row in job.rows() if row["split"] == part)
    if outputs.rejects:
        with new_file(outputs.rejects) as file:
            file.writelines(
                _line({**row["content"], "gate": row["gate"], "reason": row["reason"]}) for row in job.rows(REJECTED)
            )
    if not job.states["open"]:
        job.end()
    for error, failed in job.errors.items():
        emit(Noted(message=f"calls that made nothing: {failed:,}: {error}"))
    usage, states = job.usage, job.states
    valid = f" --valid {files['valid']}" if "valid" in files else ""
    return {
        "output": files.get("train"),
        "files": files,
        "job": job.key,
        "model": model,
        "tasks": {state: states[state] for state in ("done", "open", "failed")},
        "rows": rows.total(),
        "styles": dict(styles),
        "rejected": dict(rejected),
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost": round(usage.cost, 6),
        "rejects": str(outputs.rejects) if outputs.rejects else None,
        "next": [f"mlxforge dpo --model {model} --data {files['train']}{valid}"] if "train" in files else [],
    }


def estimate_pairs(
    store_path: Path, model: str, settings: GroundedSettings, judge: ProviderSettings | None, questions: Sequence[str] = ()
) -> dict[str, Any]:
    """What a job would come to, without asking anybody: as :func:`mlxforge.runs.synth_expand.estimate_expand`.

    The cost is the judge's: the model whose answers are compared runs here.
    """
    prompt = read_prompt("open-book", settings.prompts)
    reached = judge or ProviderSettings()
    with open_store(store_path) as store:
        tasks = plan(store, settings, questions, ignore)[0][: settings.limit]
        comparer = Comparer(store, settings, _Nobody(model), None, prompt)
        shown: list[dict[str, Any]] = []
        letters = judged = 0
        for task in tasks:
            asked = [tuple(task.request["prompt"])]
            asked += [comparer.open_book(task)] if settings.grounded == "open-book" else []
            if settings.judge in PROVIDERS:
                one = Compared(task, comparer.source(task))
                gold = str(task.request["gold"])
                compared = [tuple(comparison(comparer.question(one), gold, "…"))] * 2
                judged += _letters(compared)
                asked += compared
            letters += _letters(asked)
            if len(shown) < SHOWN:
                shown.append({"style": task.style, "messages": list(asked[-1])})
    own = len(tasks) * (1 + (settings.grounded == "open-book"))
    judgements = 2 * len(tasks) * (settings.judge in PROVIDERS)
    most = own * settings.max_tokens + judgements * JUDGE_TOKENS
    cost = reached.cost(judged // LETTERS_A_TOKEN, judgements * JUDGE_TOKENS)
    return {
        "tasks": own + judgements,
        "rows": len(tasks),
        "prompt_tokens": letters // LETTERS_A_TOKEN,
        "completion_tokens": {"expected": int(most * EXPECTED), "most": most},
        "cost": {"expected": round(cost * EXPECTED, 4), "most": round(cost, 4)},
        "prompts": shown,
    }


@dataclass(frozen=True)
class _Nobody:
    """A provider that is not asked."""

    model: str

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:  # noqa: ARG002
        """Answers nothing."""
        return iter(())


def _letters(asked: Sequence[Sequence[Mapping[str, str]]]) -> int:
    return sum(len(turn["content"]) for messages in asked for turn in messages)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
