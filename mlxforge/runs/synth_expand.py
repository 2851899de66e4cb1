"""Passages about the entities of a knowledge base: found, asked for, held against their source, written as text rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, DataError, Interrupted, RunFailed, did_you_mean
from mlxforge.core.events import Emit, Noted, Warned, ignore
from mlxforge.data.dedup import Deduplicator
from mlxforge.data.output import check_outputs, new_file
from mlxforge.knowledge import expand
from mlxforge.knowledge.asked import ProviderSettings, Purse, Request
from mlxforge.knowledge.entities import Entity
from mlxforge.knowledge.expand import STYLES, Subject, Written
from mlxforge.knowledge.jobs import REJECTED, Job, Row, Task, job_key
from mlxforge.knowledge.providers import PROVIDERS, Provider, provider
from mlxforge.knowledge.sampling import passage
from mlxforge.knowledge.schemas import enough, from_json, problem
from mlxforge.knowledge.store import Store, open_store
from mlxforge.knowledge.templates import Prompt, read_prompt
from mlxforge.runs.review import keep_reviews
from mlxforge.runs.synth import EXPECTED, LETTERS_A_TOKEN, SHOWN, alone, note_smaller, others
from mlxforge.runs.synth_work import work

KIND, FINDING = "expand", "entities"
WAYS = ("plain", "model")
LIST_TOKENS = 16 * expand.LISTED + enough(expand.ENTITIES_SCHEMA)


@dataclass(frozen=True)
class ExpandSettings:
    """What decides the passages.

    Attributes:
        entities: ``plain`` finds names, headings, repeated phrases by their form; ``model`` asks the provider, a call a chunk.
        most_entities: of a document, the most named first.
        sizes: of the groups that a passage is about: 1, 2, 3.
        per_document: passages of a document.
        context: tokens of the chunks that a passage is written from.
        limit: passages in all; a larger one goes on with the same job.
        near: similarity from which on the later of two passages is a duplicate.

    Raises:
        ConfigError: out of bounds, or an unknown provider.
    """

    entities: str = "plain"
    most_entities: int = 12
    sizes: tuple[int, ...] = (1, 2, 3)
    per_document: int = 24
    context: int = 1500
    max_tokens: int = 1024
    limit: int | None = None
    provider: str = "mlx"
    audience: str = "people who want to know the subject"
    prompts: Path | None = None
    seed: int = 0
    temperature: float = 0.7
    near: float = 0.8

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise ConfigError(
                f"unknown provider '{self.provider}'", where="--provider", fix=did_you_mean(self.provider, PROVIDERS)
            )
        if self.entities not in WAYS:
            raise ConfigError(
                f"no way '{self.entities}' to find entities", where="--entities", fix=did_you_mean(self.entities, WAYS)
            )
        if not self.sizes or set(self.sizes) - STYLES.keys() or len(set(self.sizes)) < len(self.sizes):
            raise ConfigError("not some of 1, 2 and 3, each once", where="--sizes", fix="such as --sizes 1,2")


@dataclass
class Expander:
    """Turns the tasks of both jobs into requests and replies into rows."""

    store: Store
    settings: ExpandSettings
    model: str
    prompts: Mapping[str, Prompt]
    job: str = ""

    def finding(self, task: Task) -> Request:
        """The entities of a chunk."""
        found = passage(self.store, task.chunk)
        values = {"title": found.title, "heading": found.heading, "passage": found.text.strip(), "count": str(expand.LISTED)}
        messages = self.prompts["entities"].filled(values)
        return Request(str(task.number), messages, expand.ENTITIES_SCHEMA, LIST_TOKENS, 0.0, self.settings.seed)

    def listed(self, task: Task, text: str) -> list[Row]:
        """What a model listed; what is no list is kept with its reason."""
        value = from_json(text)
        content: dict[str, Any] = {"chunk": task.chunk, "entities": [], "answer": text}
        if wrong := problem(value, expand.ENTITIES_SCHEMA):
            return [Row(content, "schema", wrong)]
        return [Row({"chunk": task.chunk, "entities": value["entities"]})]

    def request(self, task: Task) -> Request:
        """The passage of a group."""
        found, settings = expand.source(self.store, task), self.settings
        values = {
            "title": found.title,
            "passage": found.text.strip(),
            "entities": "; ".join(task.request["entities"]),
            "audience": settings.audience,
        }
        messages = self.prompts[expand.PROMPTS[task.style]].filled(values)
        return Request(str(task.number), messages, expand.SCHEMA, settings.max_tokens, settings.temperature, settings.seed)

    def rows(self, task: Task, text: str) -> list[Row]:
        """The row of an answer, with the gate that refused it, if one did."""
        written = Written(from_json(text), task.request["entities"], expand.source(self.store, task))
        gate, reason = expand.refused(written)
        prompt = self.prompts[expand.PROMPTS[task.style]].hash
        content = expand.row(written, task, model=self.model, prompt=prompt, job=self.job)
        return [Row({**content, "answer": text} if gate == "schema" else content, gate, reason)]


def synth_expand(
    store_path: Path,
    output: Path,
    settings: ExpandSettings,
    reached: ProviderSettings,
    *,
    max_cost: float = 0.0,
    rejects: Path | None = None,
    redo: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Asks what is not yet asked, then writes all passages. The state is in the store: it may be killed at any moment.

    Returns:
        ``output``, ``job``, ``documents``, ``entities``, ``tasks`` (by state), ``rows``, ``styles`` (accepted), ``rejected``
        (by gate), ``calls``, ``prompt_tokens``, ``completion_tokens``, ``cost``, ``rejects``, ``next``.

    Raises:
        ConfigError: settings, prompts or a provider that cannot be used.
        DataError: no knowledge base, nothing in it, no entity, a file that is there already, or no passage that passed.
        RunFailed: the provider failed, or the next call could exceed ``max_cost``; what is made is kept and written.
        Interrupted: the same at Ctrl-C.
    """
    files = [output, *([rejects] if rejects else [])]
    check_outputs(files, force=True)
    keep_reviews(files, force)
    prompts = read_prompts(settings)
    with open_store(store_path) as store, ExitStack() as until_the_end:
        documents = _subjects(store)
        purse = Purse(max_cost)
        asked = provider(settings.provider, replace(reached, purse=purse))
        expander = Expander(store, settings, asked.model, prompts)
        deciding = decisive(settings, documents, prompts, asked.model)
        check_outputs(others(files, job_key(KIND, deciding)), force)
        until_the_end.enter_context(alone(store_path, job_key(KIND, deciding)))
        found = _entities(documents, expander, asked, purse, redo, emit)
        tasks = _plan(found, settings, store_path)
        job = Job.open(store, KIND, deciding, tasks[: settings.limit], redo=redo)
        note_smaller(job, tasks[: settings.limit], settings.limit, emit)
        purse.spent += job.usage.cost
        expander.job = job.key
        stopped: BaseException | None = None
        try:
            work(job, asked, expander.request, expander.rows, f"asking {asked.model}", emit)
        except (RunFailed, KeyboardInterrupt) as error:
            stopped = error
        result = finish(job, output, rejects, settings, emit)
    result |= {"documents": len(documents), "entities": sum(len(ones) for _, ones in found)}
    return told(result, stopped)


def _subjects(store: Store) -> list[Subject]:
    documents = list(expand.subjects(store))
    if not documents:
        fix = f"add documents: mlxforge ingest PATH --into {store.path}"
        raise DataError("no text in this knowledge base", where=str(store.path), fix=fix)
    return documents


def read_prompts(settings: ExpandSettings) -> dict[str, Prompt]:
    """The prompts that the settings need."""
    names = {expand.PROMPTS[STYLES[size]] for size in settings.sizes} | (
        {"entities"} if settings.entities == "model" else set()
    )
    return {name: read_prompt(name, settings.prompts) for name in sorted(names)}


def decisive(
    settings: ExpandSettings, documents: Sequence[Subject], prompts: Mapping[str, Prompt], model: str
) -> dict[str, Any]:
    """All that decides the rows: what makes one job another than a second."""
    named = (
        "entities",
        "most_entities",
        "per_document",
        "context",
        "max_tokens",
        "provider",
        "audience",
        "seed",
        "temperature",
        "near",
    )
    return {
        **{name: getattr(settings, name) for name in named},
        "sizes": list(settings.sizes),
        "model": model,
        "prompts": {name: prompt.hash for name, prompt in prompts.items()},
        "documents": expand.digest(documents),
    }


def _plan(found: Sequence[tuple[Subject, list[Entity]]], settings: ExpandSettings, store: Path) -> list[Task]:
    # All are for training: a passage says again what its document says, and documents are what is held out.
    splits = {subject.path: "train" for subject, _ in found}
    tasks = expand.plan(found, settings.sizes, settings.per_document, settings.context, splits)
    if not tasks:
        fix = (
            "--entities model asks the provider"
            if settings.entities == "plain"
            else "--entities plain finds them by their form; --sizes 1 needs one only"
        )
        raise DataError(
            f"no entities for groups of {', '.join(map(str, settings.sizes))}",
            where=str(store),
            fix=fix,
        )
    return tasks


def _entities(
    documents: Sequence[Subject], expander: Expander, asked: Provider, purse: Purse, redo: bool, emit: Emit
) -> list[tuple[Subject, list[Entity]]]:
    """Each document with its entities, by their form or by a job of its own."""
    most = expander.settings.most_entities
    if expander.settings.entities == "plain":
        return [(subject, subject.found(most)) for subject in documents]
    chunks = [part.id for subject in documents for part in subject.parts]
    deciding = {
        "provider": expander.settings.provider,
        "model": asked.model,
        "prompt": expander.prompts["entities"].hash,
        "seed": expander.settings.seed,
        "documents": expand.digest(documents),
    }
    plan = (Task(number, chunk, FINDING, "train") for number, chunk in enumerate(chunks))
    job = Job.open(expander.store, FINDING, deciding, plan, redo=redo)
    purse.spent += job.usage.cost
    try:
        work(job, asked, expander.finding, expander.listed, "finding entities", emit)
    except KeyboardInterrupt:
        left = job.states["open"]
        raise Interrupted(f"stopped; chunks to look at: {left:,}", fix="the same command goes on") from None
    if left := job.states["open"]:
        what = f"{left:,} chunks are not answered, and all are needed to plan the passages"
        raise RunFailed(what, where=f"entities by {asked.model}", fix="the same command goes on")
    listed: dict[int, list[str]] = {row["content"]["chunk"]: row["content"]["entities"] for row in job.rows()}
    missed = len(chunks) - len(listed)
    if missed:
        emit(Warned(message=f"entities: {missed:,} of {len(chunks):,} chunks without a list"))
    job.end()
    return [
        (subject, subject.confirmed([name for part in subject.parts for name in listed.get(part.id, [])], most))
        for subject in documents
    ]


def finish(job: Job, output: Path, rejects: Path | None, settings: ExpandSettings, emit: Emit) -> dict[str, Any]:
    """Writes what the store has of a job; returns what it came to."""
    duplicates = Deduplicator(settings.near)
    numbers = iter(range(2**62))

    def duplicate(content: Mapping[str, Any]) -> str:
        found = duplicates.add(next(numbers), {"text": content["text"]})
        return f"{found.similarity:.0%} like row {found.of + 1}" if found else ""

    job.decide_duplicates(duplicate)
    rows, rejected = Counter[str](), Counter[str]()
    for count in job.counts():
        if count["verdict"] == REJECTED:
            rejected[count["gate"]] += count["number"]
        else:
            rows[count["style"]] += count["number"]
    if rows:
        with new_file(output) as file:
            file.writelines(_line(row["content"]) for row in job.rows())
    elif not others([output], job.key):
        output.unlink(missing_ok=True)  # rows of an older state of this job
    if rejects:
        with new_file(rejects) as file:
            file.writelines(
                _line({**row["content"], "gate": row["gate"], "reason": row["reason"]}) for row in job.rows(REJECTED)
            )
    if not job.states["open"]:
        job.end()
    for error, failed in job.errors.items():
        emit(Noted(message=f"calls that made nothing: {failed:,}: {error}"))
    usage, states = job.usage, job.states
    return {
        "output": str(output) if rows else None,
        "job": job.key,
        "tasks": {state: states[state] for state in ("done", "open", "failed")},
        "rows": rows.total(),
        "styles": dict(rows),
        "rejected": dict(rejected),
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost": round(usage.cost, 6),
        "rejects": str(rejects) if rejects else None,
        "next": [f"mlxforge cpt --model MODEL --data {job.store.path} --data {output}"] if rows else [],
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
        fix = "--rejects FILE shows them; another model may do better"
        raise DataError(f"no row passed: {reasons}", where=f"job {result['job']}", fix=fix)
    return result


def estimate_expand(store_path: Path, settings: ExpandSettings, reached: ProviderSettings) -> dict[str, Any]:
    """What a job would come to, without asking anybody; entities are found by their form, whatever the settings say.

    Returns:
        ``tasks``, ``rows``, ``documents``, ``entities`` (the first of each document), ``prompt_tokens``, ``completion_tokens``
        and ``cost`` (``expected`` and ``most``), ``prompts``: the first three, filled.

    Raises:
        ConfigError, DataError: as :func:`synth_expand`.
    """
    prompts = read_prompts(settings)
    with open_store(store_path) as store:
        documents = _subjects(store)
        expander = Expander(store, settings, reached.model, prompts)
        found = [(subject, subject.found(settings.most_entities)) for subject in documents]
        tasks = _plan(found, settings, store_path)[: settings.limit]
        requests = list(_asked(expander, documents, tasks))
        shown = [
            {"style": task.style, "entities": task.request["entities"], "messages": list(expander.request(task).messages)}
            for task in tasks[:SHOWN]
        ]
    prompt = sum(letters for letters, _ in requests) // LETTERS_A_TOKEN
    most = sum(room for _, room in requests)
    expected = int(most * EXPECTED)
    return {
        "tasks": len(requests),
        "rows": len(tasks),
        "documents": len(documents),
        "entities": {subject.title: [one.name for one in ones] for subject, ones in found[:20]},
        "prompt_tokens": prompt,
        "completion_tokens": {"expected": expected, "most": most},
        "cost": {"expected": round(reached.cost(prompt, expected), 4), "most": round(reached.cost(prompt, most), 4)},
        "prompts": shown,
    }


def _asked(expander: Expander, documents: Sequence[Subject], tasks: Sequence[Task]) -> Iterator[tuple[int, int]]:
    """(letters of the prompt, most tokens of the answer) of every call."""
    chunks = [part.id for subject in documents for part in subject.parts] if expander.settings.entities == "model" else []
    requests = (
        *(expander.finding(Task(0, chunk, FINDING, "train")) for chunk in chunks),
        *(expander.request(task) for task in tasks),
    )
    for request in requests:
        yield sum(len(turn["content"]) for turn in request.messages), request.max_tokens


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
