"""Questions and answers from a knowledge base: sampled, asked for, held against their passages, written as conversations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxforge.core.errors import DataError, Interrupted, RunFailed
from mlxforge.core.events import Emit, Noted, Progress, ignore
from mlxforge.core.files import hold
from mlxforge.data.dedup import Deduplicator
from mlxforge.data.output import check_outputs, new_file
from mlxforge.data.splits import PARTS
from mlxforge.knowledge.asked import ProviderSettings, Purse
from mlxforge.knowledge.gates import ABOUT
from mlxforge.knowledge.jobs import REJECTED, Job, Task, job_key
from mlxforge.knowledge.providers import Provider, provider
from mlxforge.knowledge.sampling import Sampled, plan, sample
from mlxforge.knowledge.store import open_store
from mlxforge.knowledge.templates import Prompt, read_prompt
from mlxforge.runs.review import keep_reviews
from mlxforge.runs.synth_rows import QaSettings, Writer, answered, judged

KIND = "qa"
LETTERS_A_TOKEN = 4
EXPECTED = 0.4  # of the tokens that an answer may have
SHOWN = 3  # prompts of a dry run


@dataclass
class Outputs:
    """The files of a job: the named one for training, ``.valid`` and ``.test`` beside it, and one for what was refused."""

    train: Path
    rejects: Path | None = None

    def part(self, name: str) -> Path:
        """The file of a part."""
        return self.train if name == "train" else self.train.with_suffix(f".{name}{self.train.suffix}")

    @property
    def all(self) -> list[Path]:
        """Every file."""
        return [*(self.part(name) for name in PARTS), *([self.rejects] if self.rejects else [])]


def synth_qa(
    store_path: Path,
    output: Path,
    settings: QaSettings,
    reached: ProviderSettings,
    judge: ProviderSettings | None = None,
    *,
    max_cost: float = 0.0,
    rejects: Path | None = None,
    redo: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Asks what is not yet asked of a job, then writes all its rows. The state is in the store: it may be killed at any moment.

    Args:
        reached: how the provider is reached; ``judge`` the same for the judge, who else is the provider.
        max_cost: US dollars over all runs of the job; 0 for no ceiling.
        redo: forget what the job made.
        force: replace files that another job wrote.

    Returns:
        See :func:`summary`.

    Raises:
        ConfigError: settings, prompts or a provider that cannot be used.
        DataError: no knowledge base, no chunks, files that are there already, or no row that passed.
        RunFailed: the provider failed, or the next call could exceed ``max_cost``; what is made is kept and written.
        Interrupted: the same at Ctrl-C.
    """
    outputs = Outputs(output, rejects)
    check_outputs(outputs.all, force=True)
    keep_reviews(outputs.all, force)
    Deduplicator(settings.near)  # says now that its package is missing, not at the end
    prompts = read_prompts(settings)
    with open_store(store_path) as store, ExitStack() as until_the_end:
        sampled = sample(store, settings.seed, settings.valid, settings.test)
        purse = Purse(max_cost)
        asked = provider(settings.provider, replace(reached, purse=purse))
        judging = _judge(settings, judge, asked, reached, purse)
        deciding = decisive(settings, sampled, prompts, asked.model, judging.model if judging else "")
        check_outputs(others(outputs.all, job_key(KIND, deciding)), force)
        until_the_end.enter_context(alone(store_path, job_key(KIND, deciding)))
        tasks = list(plan(sampled, settings.styles, settings.per_chunk, settings.limit))
        job = Job.open(store, KIND, deciding, tasks, redo=redo)
        note_smaller(job, tasks, settings.limit, emit)
        purse.spent = job.usage.cost
        writer = Writer(store, settings, asked.model, prompts, job.key)
        stopped: BaseException | None = None
        try:
            _work(job, writer, asked, judging, emit)
        except (RunFailed, KeyboardInterrupt) as error:
            stopped = error
        result = finish(job, outputs, settings, sampled, emit)
    return told(result, stopped)


def opener(runs_dir: Path) -> Callable[[str], tuple[Any, Any]]:
    """Opens a model for the provider ``mlx``: runs and adapters too."""

    def opened(name: str) -> tuple[Any, Any]:
        from mlxforge.runs.opening import open_model

        found = open_model(name, runs_dir)
        return found.loaded, found.template

    return opened


def others(files: Iterable[Path], job: str) -> list[Path]:
    """Those of the files that a job may not replace: they hold rows, and the first is not one of its own."""
    return [file for file in files if not (file.is_file() and (not file.stat().st_size or _job_of(file) == job))]


def _job_of(file: Path) -> str:
    with open(file, "rb") as opened:
        try:
            return str(json.loads(opened.readline())["source"]["job"])
        except (ValueError, LookupError, TypeError):
            return ""


@contextmanager
def alone(store: Path, job: str) -> Iterator[None]:
    """Holds a job for this process: two would ask, and pay, for every row twice.

    Raises:
        RunError: another process works at it.
    """
    lock = store.with_name(f".{store.name}.{job}.lock")
    with hold(lock, "another process works at this job", str(store)):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def note_smaller(job: Job, tasks: Sequence[Task], limit: int | None, emit: Emit) -> None:
    """Says where a limit asks for less than was asked for before: nothing is taken back."""
    if job.states.total() > len(tasks):
        what = f"--limit {limit} asks for less than the job has from an earlier run: all of its rows are written"
        emit(Noted(message=f"{what}; --redo begins anew"))


def read_prompts(settings: QaSettings) -> dict[str, Prompt]:
    """The prompts that the settings need."""
    names = [*settings.styles, *(["judge"] if settings.judge else [])]
    return {name: read_prompt(name, settings.prompts) for name in names}


def decisive(settings: QaSettings, sampled: Sampled, prompts: Mapping[str, Prompt], model: str, judge: str) -> dict[str, Any]:
    """All that decides the rows: what makes one job another than a second."""
    return {
        "styles": list(settings.styles),
        "per_chunk": settings.per_chunk,
        "provider": settings.provider,
        "model": model,
        "judge": [settings.judge, judge, settings.least_score] if settings.judge else [],
        "audience": settings.audience,
        "prompts": {name: prompt.hash for name, prompt in prompts.items()},
        "seed": settings.seed,
        "temperature": settings.temperature,
        "shares": [settings.valid, settings.test],
        "near": settings.near,
        "chunks": sampled.digest,
    }


def _judge(
    settings: QaSettings, reached: ProviderSettings | None, asked: Provider, other: ProviderSettings, purse: Purse
) -> Provider | None:
    if not settings.judge:
        return None
    if settings.judge == settings.provider and reached in (None, other):
        return asked  # a model is not loaded twice
    return provider(settings.judge, replace(reached or ProviderSettings(), purse=purse))


def _work(job: Job, writer: Writer, asked: Provider, judge: Provider | None, emit: Emit) -> None:
    """Asks all open tasks; each is kept once it is answered and, where there is a judge, judged."""
    total, done = job.states.total(), job.states.total() - job.states["open"]
    task = f"asking {asked.model}"
    if not job.states["open"]:
        return
    emit(Progress(task=task, done=done, total=total, unit="tasks"))
    made = answered(job, writer, asked)
    for one in judged(made, judge, writer.prompts["judge"], writer.settings) if judge else made:
        job.finish(one.task, one.rows, one.usage)
        done += 1
        emit(Progress(task=task, done=done, total=total, unit="tasks"))


def finish(job: Job, outputs: Outputs, settings: QaSettings, sampled: Sampled, emit: Emit) -> dict[str, Any]:
    """Writes what the store has of a job; returns :func:`summary`."""
    duplicates = Deduplicator(settings.near)
    numbers = iter(range(2**62))

    def duplicate(content: Mapping[str, Any]) -> str:
        found = duplicates.add(next(numbers), {"question": content["messages"][0]["content"]})
        return f"{found.similarity:.0%} like row {found.of + 1}" if found else ""

    job.decide_duplicates(duplicate)
    result = summary(job, sampled)
    for part in PARTS:
        path = outputs.part(part)
        if not result["rows"].get(part):
            # A split that this state of the job has not, or that would stand beside rows of another job.
            if result["rows"] or not others([path], job.key):
                path.unlink(missing_ok=True)
            continue
        result["files"][part] = str(path)
        with new_file(path) as file:
            file.writelines(_line(row["content"]) for row in job.rows() if row["split"] == part)
    if train := result["files"].get("train"):
        held = f" --valid {result['files']['valid']}" if "valid" in result["files"] else ""
        result["next"] = [f"mlxforge synth review {train}", f"mlxforge sft --data {train}{held}"]
    if outputs.rejects:
        with new_file(outputs.rejects) as file:
            for row in job.rows(REJECTED):
                file.write(_line({**row["content"], "gate": row["gate"], "reason": row["reason"]}))
        result["rejects"] = str(outputs.rejects)
    if not job.states["open"]:
        job.end()
    for error, count in job.errors.items():
        emit(Noted(message=f"calls that made nothing: {count:,}: {error}"))
    return result


def summary(job: Job, sampled: Sampled) -> dict[str, Any]:
    """What a job has come to: ``job`` (its key), ``documents`` (by split), ``short`` (chunks too short to ask about), ``tasks``
    (by state), ``rows`` (accepted, by split), ``styles`` (accepted), ``rejected`` (by gate), ``calls``, ``prompt_tokens``,
    ``completion_tokens``, ``cost`` (US dollars), ``files`` (by split) and ``next`` (commands)."""
    rows, styles, rejected = Counter[str](), Counter[str](), Counter[str]()
    for count in job.counts():
        if count["gate"]:
            rejected[count["gate"]] += count["number"]
        else:
            rows[count["split"]] += count["number"]
            styles[count["style"]] += count["number"]
    usage = job.usage
    return {
        "job": job.key,
        "documents": dict(sampled.documents),
        "tasks": {state: job.states[state] for state in ("done", "open", "failed")},
        "rows": {part: rows[part] for part in PARTS if rows[part]},
        "styles": dict(styles),
        "rejected": {gate: rejected[gate] for gate in ABOUT if rejected[gate]},
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost": round(usage.cost, 6),
        "short": sampled.short,
        "files": {},
        "next": [],
    }


def told(result: dict[str, Any], stopped: BaseException | None) -> dict[str, Any]:
    """The result, or what stopped the job, which has it as ``result``."""
    if isinstance(stopped, RunFailed):
        stopped.result = result  # type: ignore[attr-defined]
        raise stopped
    if stopped is not None:
        interrupted = Interrupted(f"stopped; tasks to go: {result['tasks']['open']:,}", fix="the same command goes on")
        interrupted.result = result
        raise interrupted
    if not result["rows"]:
        reasons = ", ".join(f"{gate} {count:,}" for gate, count in result["rejected"].items()) or "no call was answered"
        error = DataError(
            f"no row passed: {reasons}", where="synth qa", fix="--rejects FILE shows them; another model may do better"
        )
        raise error
    return result


def estimate(store_path: Path, settings: QaSettings, reached: ProviderSettings) -> dict[str, Any]:
    """What a job would come to, without asking anybody: ``tasks``, ``rows``, ``prompt_tokens``, ``completion_tokens``
    (``most`` and expected), ``cost`` (the same), ``documents``, and ``prompts``: the first three, filled.

    Raises:
        ConfigError, DataError: as :func:`synth_qa`.
    """
    prompts = read_prompts(settings)
    with open_store(store_path) as store:
        sampled = sample(store, settings.seed, settings.valid, settings.test)
        writer = Writer(store, settings, reached.model, prompts)
        shown: list[dict[str, Any]] = []
        tasks = rows = prompt = most = 0
        for task in plan(sampled, settings.styles, settings.per_chunk, settings.limit):
            request = writer.request(replace(task, id=task.number))
            writer.passages.clear()
            tasks, rows, most = tasks + 1, rows + int(task.request["count"]), most + request.max_tokens
            prompt += sum(len(turn["content"]) for turn in request.messages) // LETTERS_A_TOKEN
            if len(shown) < SHOWN:
                shown.append({"style": task.style, "split": task.split, "messages": list(request.messages)})
    expected = int(most * EXPECTED)
    return {
        "tasks": tasks,
        "rows": rows,
        "documents": dict(sampled.documents),
        "short": sampled.short,
        "prompt_tokens": prompt,
        "completion_tokens": {"expected": expected, "most": most},
        "cost": {"expected": round(reached.cost(prompt, expected), 4), "most": round(reached.cost(prompt, most), 4)},
        "prompts": shown,
    }


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
