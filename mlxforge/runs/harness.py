"""lm-evaluation-harness: its tasks on our models, through mlx-lm's own adapter, in the same report.

The adapter is given models as they are loaded here, runs with their adapters too. What it leaves open is settled: a text
without a context is scored behind the token that begins texts, prompts fit the model's positions, and an answer has a limit.
"""

from __future__ import annotations

import io
import logging
import math
import numbers
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from mlxforge.core.errors import ConfigError, DataError, MissingExtraError, MlxforgeError, RunFailed, did_you_mean
from mlxforge.core.events import Emit, Progress, ignore
from mlxforge.core.files import bytes_hash
from mlxforge.evals.estimators import mean, share
from mlxforge.evals.metrics import Column, Metric, compare, value
from mlxforge.evals.report import Better, Report, SetInfo, Value
from mlxforge.knowledge.endpoint import short
from mlxforge.runs.eval_figures import pairs
from mlxforge.runs.eval_job import Job, SuiteSettings
from mlxforge.runs.eval_kept import Kept

if TYPE_CHECKING:
    from mlxforge.runs.subject_mlx import MlxSubject
    from mlxforge.runs.subjects import Subject

Item = TypeVar("Item")
SUITES = ("lm-eval",)
NAMED = re.compile(r"^(task|group):[ \t]*[\"']?([\w.-]+)", re.MULTILINE)
YAML = (".yaml", ".yml")
PLAIN = "none"  # the filter that leaves answers as they are
BATCH = 8
TOGETHER = 64  # answers between two signs of progress
BETTER: dict[bool | None, Better] = {True: "higher", False: "lower", None: ""}
# What would start other programs, or write to the terminal, and is of no use here.
IDLE = ("add_env_info", "get_git_commit_hash")


class Suite:
    """Tasks that were asked for, found and loaded before any model is.

    Raises:
        ConfigError: an unknown suite or task, a path without tasks, or a model that is a GGUF file.
        MissingExtraError: no package ``lm-eval``.
        DataError: the data of a task cannot be had.
    """

    def __init__(self, settings: SuiteSettings) -> None:
        if settings.suite not in SUITES:
            raise ConfigError(f"unknown suite '{settings.suite}'", where="--suite", fix=did_you_mean(settings.suite, SUITES))
        if not settings.tasks:
            raise ConfigError("no task", where="--tasks", fix="name some: --tasks arc_easy,hellaswag, or a YAML file or folder")
        if find_spec("lm_eval") is None:
            raise MissingExtraError("lm-eval", "lm-eval", "--suite lm-eval")
        self.settings = settings
        self.names, folders = _found(settings.tasks)
        # The harness's own 14,000 tasks take a while to list.
        self.shipped = [name for name in settings.tasks if name in self.names]
        with _quiet():
            from lm_eval.tasks import TaskManager

            self.manager = TaskManager(include_path=folders or None, include_defaults=bool(self.shipped))
            for name in self.names:
                if name not in self.manager.all_tasks:
                    raise ConfigError(f"no task '{name}'", where="--tasks", fix=_near(name, self.manager.all_tasks))
            with _told(DataError, self.names, "its data come from the hub: is there a network, a login?"):
                self.manager.load_task_or_group(self.names)

    def key(self, name: str, limit: int | None) -> str:
        """All that decides what a model makes of a task, besides the model; empty where it cannot be known."""
        packages = version("lm-eval"), version("mlx-lm")
        given = name, limit, self.settings.shots, self.settings.chat
        return bytes_hash("lm-eval", *packages, str(given)) if name in self.shipped else ""


def _near(name: str, known: Sequence[str]) -> str:
    told = did_you_mean(name, known)
    return told if told.startswith("did you") else "lm-eval ls tasks lists them; or name a YAML file"


def _found(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of tasks, and the folders of those that are given as files or folders."""
    names, folders = list[str](), list[str]()
    for one in given:
        path = Path(one).expanduser()
        if not path.exists():
            if path.suffix in YAML or "/" in one:
                raise ConfigError("no such file or folder", where=f"--tasks {one}", fix="name a task, a YAML file or a folder")
            names.append(one)
            continue
        files = [path] if path.is_file() else sorted(file for end in YAML for file in path.rglob(f"*{end}"))
        mine = [name for file in files if (name := _name(file))]
        if not mine:
            raise ConfigError("holds no task", where=f"--tasks {one}", fix="a YAML file with a line 'task: NAME'")
        names += mine
        folders.append(str(path if path.is_dir() else path.parent))
    return list(dict.fromkeys(names)), list(dict.fromkeys(folders))


def _name(file: Path) -> str:
    """What a file calls its task or group; empty for one that others include."""
    found = dict(NAMED.findall(file.read_text("utf-8", "replace")))
    return found.get("group") or found.get("task") or ""


def run(job: Job, suite: Suite, subject: Subject, kept: Kept) -> dict[str, Any]:
    """What one model makes of all tasks: task -> ``figures`` (name -> value), ``better``, ``rows``, ``total``.

    A task that was done before is not done again, unless it was given as a file: nobody knows whether its data changed.

    Raises:
        RunFailed: a task cannot be run.
    """
    found: dict[str, Any] = {}
    for name in suite.names:
        key = suite.key(name, job.settings.limit)
        done = kept.get(key) if key else None
        if done is None:
            done = _ask(job, suite, subject, name)
            if key:
                kept.add(key, done)
        found |= done
    return found


def _ask(job: Job, suite: Suite, subject: Subject, name: str) -> dict[str, Any]:
    from mlxforge.runs.subject_mlx import MlxSubject

    assert isinstance(subject, MlxSubject)
    given = suite.settings
    task = f"{subject.info.label}: {name}"
    thinking, room = job.settings.thinking, job.settings.max_tokens
    with _quiet(), _told(RunFailed, [name]), _counted(job.emit, task):
        from lm_eval import simple_evaluate

        results = simple_evaluate(
            model=adapter(subject, chat=given.chat, max_tokens=room, thinking=thinking, emit=job.emit, task=task),
            tasks=[name],
            task_manager=suite.manager,
            num_fewshot=given.shots,
            limit=job.settings.limit,
            apply_chat_template=given.chat,
            bootstrap_iters=0,  # intervals are ours, over rows
        )
    return {at.replace(".", "_"): _plain(at, results) for at in results["results"]}


def adapter(
    subject: MlxSubject,
    *,
    chat: bool = False,
    max_tokens: int = 256,
    thinking: bool | None = None,
    emit: Emit = ignore,
    task: str = "",
) -> Any:
    """mlx-lm's adapter of the harness around a model that is open.

    Args:
        chat: prompts go through the chat template that training used.
        max_tokens: of an answer, where its task says nothing.
    """
    from mlx_lm.evaluate import MLXLM, chat_template_fn

    loaded, limit = subject.opened.loaded, subject.limit
    tokenizer = loaded.tokenizer
    begin = tokenizer.bos_token or tokenizer.eos_token or ""
    if chat:
        if subject.no_chat:
            raise ConfigError(subject.no_chat, where="--apply-chat-template", fix="leave it out")
        tokenizer._tokenizer.chat_template = subject.opened.template.text
        tokenizer.eos_token_ids = {*tokenizer.eos_token_ids, *subject.opened.template.stop}

    class Adapter(MLXLM):
        apply_chat_template = chat_template_fn(**({} if thinking is None else {"enable_thinking": thinking}))

        def __init__(self) -> None:
            super(MLXLM, self).__init__()  # the model is loaded already
            self._model, self.tokenizer = loaded.model, tokenizer
            self._batch_size, self.use_chat_template = BATCH, chat
            self._max_tokens: int | None = None
            self._sampler = None

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            self._max_tokens = limit and limit - 1
            given = [_request(one.args[0] or begin, one.args[1]) for one in requests]
            found: list[tuple[float, bool]] = super().loglikelihood(given)
            return found

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            begun = begin if self._tokenize([""]) == [()] else ""
            found: list[float] = super().loglikelihood_rolling([_request(begun + one.args[0]) for one in requests])
            return found

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            self._max_tokens = None
            given = [_request(one.args[0], _options(one.args[1], max_tokens)) for one in requests]
            found: list[str] = []
            for start in range(0, len(given), TOGETHER):
                emit(Progress(task=task, done=start, total=len(given), unit="questions"))
                found += super().generate_until(given[start : start + TOGETHER])
            emit(Progress(task=task, done=len(given), total=len(given), unit="questions"))
            return found

    return Adapter()


def _request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def _options(given: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """What a task says of its answers, with ``until`` as a list and a limit."""
    until = given.get("until") or []
    most = given.get("max_gen_toks") or max_tokens
    return {**given, "until": [until] if isinstance(until, str) else list(until), "max_gen_toks": int(most)}


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness, its data sets and mlx-lm write bars and figures to the terminal; ours are events."""
    import tqdm

    begin = tqdm.tqdm.__init__

    def silent(bar: Any, *args: Any, **options: Any) -> None:
        begin(bar, *args, **{**options, "disable": True})

    log = logging.getLogger("lm_eval")
    with ExitStack() as stack, redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        stack.enter_context(_set(tqdm.tqdm, "__init__", silent))
        evaluator = import_module("lm_eval.evaluator")
        for name in IDLE:
            if hasattr(evaluator, name):
                stack.enter_context(_set(evaluator, name, lambda *_: None))
        yield


@contextmanager
def _counted(emit: Emit, task: str) -> Iterator[None]:
    """The adapter's bar of questions as events."""

    def counted(items: Iterable[Item], total: int = 0) -> Iterator[Item]:
        for done, item in enumerate(items):
            emit(Progress(task=task, done=done, total=total, unit="questions"))
            yield item
        emit(Progress(task=task, done=total, total=total, unit="questions"))

    with _set(import_module("mlx_lm.evaluate"), "tqdm", counted):
        yield


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _told(kind: type[MlxforgeError], names: Sequence[str], fix: str = "") -> Iterator[None]:
    """What goes wrong inside the harness, in one line."""
    try:
        yield
    except MlxforgeError:
        raise
    except Exception as error:
        raise kind(f"{type(error).__name__}: {short(str(error))}", where=f"lm-eval {', '.join(names)}", fix=fix) from error


def _plain(at: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """A task's figures and rows as plain values; the names of figures have their filter's behind them, where there is one."""
    samples = results.get("samples", {}).get(at, [])
    places = {doc: place for place, doc in enumerate(sorted({one["doc_id"] for one in samples}))}
    rows: list[dict[str, Any]] = [{} for _ in places]
    for one in samples:
        row, label = rows[places[one["doc_id"]]], one.get("filter", PLAIN)
        row.update(_row(one), scores={**row.get("scores", {}), **_scores(one, label)})
    figures = {
        _figure(*key.split(",", 1)): float(found)
        for key, found in results["results"][at].items()
        if "," in key and "_stderr," not in key and _is_number(found)
    }
    higher = results.get("higher_is_better", {}).get(at, {})
    better = {
        name: BETTER[higher.get(max((one for one in higher if name.startswith(one)), key=len, default=""))] for name in figures
    }
    total = len(rows) or int(results["results"][at].get("sample_len") or 0)
    return {"figures": figures, "better": better, "rows": rows, "total": total, "shots": results.get("n-shot", {}).get(at)}


def _figure(metric: str, label: str = PLAIN) -> str:
    return (metric if label == PLAIN else f"{metric}_{label}").replace(".", "_")


def _is_number(found: Any) -> bool:
    return isinstance(found, numbers.Real) and math.isfinite(found)


def _scores(one: Mapping[str, Any], label: str) -> dict[str, float]:
    return {_figure(name, label): float(one[name]) for name in one.get("metrics", ()) if _is_number(one.get(name))}


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt, the right answer and the model's: of choices the likeliest."""
    asked, said, target = one["arguments"], one["filtered_resps"], one["target"]
    choices = [str(given[1]).strip() for given in asked] if len(asked) > 1 else []
    likely = [found[0] for found in said if isinstance(found, (list, tuple)) and found]
    if choices and len(likely) == len(choices):
        answer: str | None = choices[max(range(len(choices)), key=lambda place: likely[place])]
        right = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else str(target)
    else:
        answer, right = next((found for found in said if isinstance(found, str)), None), str(target)
    return {"prompt": str(asked[0][0]), "reference": right, "answer": answer}


def add(report: Report, job: Job) -> Iterator[dict[str, Any]]:
    """Puts the tasks into a report, each a set of its own with tests between models.

    Returns:
        The lines of ``rows.jsonl``.
    """
    labels = [named.label for named in job.models]
    lines = list[dict[str, Any]]()
    for task in dict.fromkeys(task for label in labels for task in job.suite[label]):
        done = {label: job.suite[label][task] for label in labels}
        name = task if all(task != one.name for one in report.sets) else f"{task} (lm-eval)"
        rows = done[labels[0]]["rows"]
        content = bytes_hash(*(row["prompt"] for row in rows))
        report.sets.append(
            SetInfo(name=name, path=f"lm-eval:{task}", kind="lm-eval", rows=done[labels[0]]["total"], hash=content)
        )
        columns = {label: _columns(found) for label, found in done.items()}
        for label in labels:
            figures = {at: _value(done[label], columns[label], at, job.settings.seed) for at in done[label]["figures"]}
            report.results[label][name] = figures
            lines += (
                {"set": name, "row": place, "model": label, **row, "finish": None, "context": None, "source": None}
                for place, row in enumerate(done[label]["rows"])
            )
        for label, against in pairs(labels):
            for at in columns[label].keys() & columns[against].keys():
                found = compare(columns[label][at], columns[against][at], name, label, against, job.settings.seed)
                if found is not None:
                    report.tests.append(found)
    return iter(lines)


def _columns(done: Mapping[str, Any]) -> dict[str, Column]:
    """The figures that are the mean of their rows: of others, such as a corpus BLEU, rows cannot be redrawn."""
    import numpy as np

    found = {}
    for name, figure in done["figures"].items():
        scores = [(place, row["scores"][name]) for place, row in enumerate(done["rows"]) if name in row["scores"]]
        terms = np.array([[score] for _, score in scores], np.float64).reshape(len(scores), 1)
        if not scores or not math.isclose(terms.mean(), figure, rel_tol=1e-6, abs_tol=1e-9):
            continue
        within = bool(((terms >= 0) & (terms <= 1)).all())
        metric = Metric(name, "lm-eval", "", done["better"][name], "", figure=share if within else mean)
        found[name] = Column(metric, terms, np.array([place for place, _ in scores]), len(done["rows"]))
    return found


def _value(done: Mapping[str, Any], columns: Mapping[str, Column], name: str, seed: int) -> Value:
    if name in columns:
        return value(columns[name], seed)
    return Value(value=done["figures"][name], n=done["total"], better=done["better"][name])
