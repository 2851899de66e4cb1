"""Questions and answers from a knowledge base: sampled, asked for, held against their passages, written as conversations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, DataError, Interrupted, RunFailed, did_you_mean
from mlxforge.core.events import Emit, Noted, Progress, ignore
from mlxforge.data.dedup import Deduplicator
from mlxforge.data.output import check_outputs, new_file
from mlxforge.data.splits import PARTS
from mlxforge.knowledge.gates import ABOUT, Candidate, Passage, refused
from mlxforge.knowledge.jobs import REJECTED, Job, Row, Task, Usage, job_key
from mlxforge.knowledge.providers import PROVIDERS, Provider, ProviderSettings, Purse, Reply, Request, provider
from mlxforge.knowledge.sampling import Sampled, passage, plan, sample
from mlxforge.knowledge.schemas import from_json, problem, record, text_of
from mlxforge.knowledge.store import Store, open_store
from mlxforge.knowledge.styles import STYLES
from mlxforge.knowledge.templates import Prompt, read_prompt

KIND = "qa"
SPARE = 64  # tokens of an answer beside its rows
LETTERS_A_TOKEN = 4
EXPECTED = 0.4  # of the tokens that an answer may have
SHOWN = 3  # prompts of a dry run
JUDGED_TOGETHER = 32  # tasks whose rows wait for the judge: what a kill may lose
VERDICT = record(
    reason=text_of(2, 500, "why, in a sentence"),
    score={"type": "integer", "minimum": 1, "maximum": 5, "description": "1 to 5"},
)


@dataclass(frozen=True)
class QaSettings:
    """What decides the rows.

    Attributes:
        styles: names of :data:`mlxforge.knowledge.styles.STYLES`.
        per_chunk: rows asked for of each chunk; styles take turns.
        limit: rows asked for in all; a larger one goes on with the same job.
        audience: for whom, in the words of the prompt.
        prompts: a folder whose files replace the shipped ones.
        valid, test: shares of the documents.
        near: similarity of questions from which on the later one is a duplicate.
        least_score: of the judge, from 1 to 5.

    Raises:
        ConfigError: an unknown style or provider, or shares that leave nothing to train on.
    """

    styles: tuple[str, ...] = tuple(STYLES)
    per_chunk: int = 3
    limit: int | None = None
    provider: str = "mlx"
    judge: str = ""
    least_score: int = 4
    audience: str = "people who want to know the subject"
    prompts: Path | None = None
    seed: int = 0
    temperature: float = 0.7
    valid: float = 0.05
    test: float = 0.05
    near: float = 0.8

    def __post_init__(self) -> None:
        for style in self.styles:
            if style not in STYLES:
                raise ConfigError(f"unknown style '{style}'", where="--styles", fix=did_you_mean(style, STYLES))
        if not self.styles or len(set(self.styles)) < len(self.styles):
            raise ConfigError("each style once, and at least one", where="--styles", fix=f"known: {', '.join(STYLES)}")
        for name, flag in ((self.provider, "--provider"), (self.judge, "--judge")):
            if name and name not in PROVIDERS:
                raise ConfigError(f"unknown provider '{name}'", where=flag, fix=did_you_mean(name, PROVIDERS))
        if self.valid + self.test >= 1:
            what = f"{self.valid:g} and {self.test:g} leave nothing to train on"
            raise ConfigError(what, where="--valid, --test", fix="less than 1 in all")


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


@dataclass
class Writer:
    """Turns tasks into requests and replies into rows."""

    store: Store
    settings: QaSettings
    model: str
    prompts: Mapping[str, Prompt]
    job: str = ""
    passages: dict[int, Passage] = field(default_factory=dict)

    def request(self, task: Task) -> Request:
        """What a task asks for."""
        found = self.passages[task.id] = passage(self.store, task.chunk)
        style, count = STYLES[task.style], int(task.request["count"])
        values = {
            "title": found.title,
            "heading": found.heading,
            "passage": found.text.strip(),
            "count": str(count),
            "audience": self.settings.audience,
        }
        messages = self.prompts[task.style].filled(values)
        room, settings = style.tokens * count + SPARE, self.settings
        return Request(str(task.number), messages, style.schema(count), room, settings.temperature, settings.seed)

    def rows(self, task: Task, text: str) -> list[Row]:
        """The rows of an answer, each with the gate that refused it, if any did."""
        found = self.passages.pop(task.id)
        value = from_json(text)
        items = value.get("rows") if isinstance(value, dict) else None
        if not isinstance(items, list) or not items:
            reason = "no JSON" if value is None else "no rows"
            return [Row({"answer": text, "source": self.source(task, found, found.span)}, "schema", reason)]
        return [self._row(task, Candidate(STYLES[task.style], _stripped(item), found)) for item in items]

    def _row(self, task: Task, candidate: Candidate) -> Row:
        gate, reason = refused(candidate)
        if gate == "schema":
            source = self.source(task, candidate.passage, candidate.passage.span)
            return Row({"answer": candidate.values, "source": source}, gate, reason)
        roles = ("user", "assistant")
        messages = [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(candidate.turns)]
        source = self.source(task, candidate.passage, candidate.span)
        return Row({"messages": messages, "source": {**source, "quote": candidate.values["quote"]}}, gate, reason)

    def source(self, task: Task, found: Passage, span: tuple[int, int]) -> dict[str, Any]:
        """Where a row comes from."""
        return {
            "document": found.document,
            "chunk": found.chunk,
            "span": list(span),
            "style": task.style,
            "model": self.model,
            "prompt": self.prompts[task.style].hash,
            "job": self.job,
        }


@dataclass
class Made:
    """What a task came to, before it is kept."""

    task: Task
    rows: list[Row]
    usage: Usage
    passage: Passage


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
    Deduplicator(settings.near)  # says now that its package is missing, not at the end
    prompts = read_prompts(settings)
    with open_store(store_path) as store:
        sampled = sample(store, settings.seed, settings.valid, settings.test)
        purse = Purse(max_cost)
        asked = provider(settings.provider, replace(reached, purse=purse))
        judging = _judge(settings, judge, asked, reached, purse)
        deciding = decisive(settings, sampled, prompts, asked.model, judging.model if judging else "")
        check_outputs(others(outputs.all, job_key(KIND, deciding)), force)
        job = Job.open(store, KIND, deciding, plan(sampled, settings.styles, settings.per_chunk, settings.limit), redo=redo)
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
    made = _made(job, writer, asked)
    for one in judged(made, judge, writer.prompts["judge"], writer.settings) if judge else made:
        job.finish(one.task, one.rows, one.usage)
        done += 1
        emit(Progress(task=task, done=done, total=total, unit="tasks"))


def _made(job: Job, writer: Writer, asked: Provider) -> Iterator[Made]:
    """The rows of each task that is answered; those that are not are noted."""
    begun: dict[str, Task] = {}

    def requests() -> Iterator[Request]:
        for task in job.open_tasks():
            request = writer.request(task)
            begun[request.key] = task
            yield request

    for reply in asked.complete(requests()):
        task = begun.pop(reply.key)
        found, usage = writer.passages[task.id], _usage(reply)
        if reply.error:
            del writer.passages[task.id]
            job.fail(task, reply.error, usage, later=reply.later)
        else:
            yield Made(task, writer.rows(task, reply.text), usage, found)


def _usage(reply: Reply) -> Usage:
    return Usage(1, reply.prompt_tokens, reply.completion_tokens, reply.cost)


def judged(made: Iterable[Made], judge: Provider, prompt: Prompt, settings: QaSettings) -> Iterator[Made]:
    """The same with the judge's verdicts on rows that passed. What a failing provider has answered is still judged."""
    held: list[Made] = []
    failed: RunFailed | None = None
    source = iter(made)
    while True:
        try:
            one = next(source, None)
        except RunFailed as error:
            one, failed = None, error
        if one is not None:
            held.append(one)
        if one is None or len(held) >= JUDGED_TOGETHER:
            yield from _verdicts(held, judge, prompt, settings)
            held = []
        if failed:
            raise failed
        if one is None:
            return


def _verdicts(held: list[Made], judge: Provider, prompt: Prompt, settings: QaSettings) -> Iterator[Made]:
    waiting = {
        f"judge {one.task.number}:{place}": (one, place) for one in held for place, row in enumerate(one.rows) if not row.gate
    }
    requests = [_question(key, one, place, prompt) for key, (one, place) in waiting.items()]
    left = Counter(id(one) for one, _ in waiting.values())
    yield from (one for one in held if not left[id(one)])
    for reply in judge.complete(requests):
        one, place = waiting[reply.key]
        one.rows[place] = _verdict(one.rows[place], reply, judge.model, settings.least_score)
        one.usage = one.usage + _usage(reply)
        left[id(one)] -= 1
        if not left[id(one)]:
            yield one


def _question(key: str, one: Made, place: int, prompt: Prompt) -> Request:
    turns = one.rows[place].content["messages"]
    values = {
        "title": one.passage.title,
        "passage": one.passage.text.strip(),
        "style": one.task.style,
        "conversation": "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in turns),
    }
    return Request(key, prompt.filled(values), VERDICT, 400, 0.0)


def _verdict(row: Row, reply: Reply, model: str, least: int) -> Row:
    value = from_json(reply.text)
    if reply.error or problem(value, VERDICT):
        return Row(row.content, "judge", f"no verdict: {reply.error or problem(value, VERDICT)}")
    content = {**row.content, "source": {**row.content["source"], "judge": {"model": model, **value}}}
    low = value["score"] < least
    return Row(content, "judge" if low else "", f"{value['score']} of 5: {value['reason']}" if low else "")


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
            path.unlink(missing_ok=True)  # rows of an older state of this job
            continue
        result["files"][part] = str(path)
        with new_file(path) as file:
            file.writelines(_line(row["content"]) for row in job.rows() if row["split"] == part)
    if outputs.rejects:
        with new_file(outputs.rejects) as file:
            for row in job.rows(REJECTED):
                file.write(_line({**row["content"], "gate": row["gate"], "reason": row["reason"]}))
        result["rejects"] = str(outputs.rejects)
    if not job.states["open"]:
        job.end()
    for error, count in job.errors.items():
        emit(Noted(message=f"{count:,} calls made nothing: {error}"))
    return result


def summary(job: Job, sampled: Sampled) -> dict[str, Any]:
    """What a job has come to: ``job`` (its key), ``documents`` (by split), ``short`` (chunks too short to ask about), ``tasks``
    (by state), ``rows`` (accepted, by split), ``styles`` (accepted), ``rejected`` (by gate), ``calls``, ``prompt_tokens``,
    ``completion_tokens``, ``cost`` (US dollars) and ``files`` (by split)."""
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
    }


def told(result: dict[str, Any], stopped: BaseException | None) -> dict[str, Any]:
    """The result, or what stopped the job, which has it as ``result``."""
    if isinstance(stopped, RunFailed):
        stopped.result = result  # type: ignore[attr-defined]
        raise stopped
    if stopped is not None:
        left = result["tasks"]["open"]
        interrupted = Interrupted(f"stopped with {left:,} tasks to go", fix="the same command goes on")
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


def _stripped(value: Any) -> Any:
    """The value with no white space around its texts."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, dict):
        return {key: _stripped(part) for key, part in value.items()}
    return [_stripped(part) for part in value] if isinstance(value, list) else value


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
