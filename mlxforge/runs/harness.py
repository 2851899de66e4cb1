"""lm-evaluation-harness: its tasks on our models, through mlx-lm's own adapter, in the same report.

The adapter is given models as they are loaded here, runs with their adapters too. What it leaves open is settled: a text
without a context is scored behind the token that begins texts, prompts fit the model's positions, and an answer has a limit.
"""

from __future__ import annotations

import io
import logging
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
from mlxforge.knowledge.endpoint import short
from mlxforge.runs.eval_job import Job, SuiteSettings
from mlxforge.runs.eval_kept import Kept
from mlxforge.runs.harness_sets import plain

if TYPE_CHECKING:
    from mlxforge.runs.subject import Subject
    from mlxforge.runs.subject_mlx import MlxSubject

Item = TypeVar("Item")
SUITES = ("lm-eval",)
NAMED = re.compile(r"^(task|group):[ \t]*[\"']?([\w.-]+)", re.MULTILINE)
YAML = (".yaml", ".yml")
BATCH = 8
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
    return {at.replace(".", "_"): plain(at, results) for at in results["results"]}


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

    from mlxforge.models.generate import greedy_batches, greedy_groups

    loaded, limit = subject.opened.loaded, subject.limit
    tokenizer = loaded.tokenizer
    begin = tokenizer.bos_token or tokenizer.eos_token or ""
    if chat:
        if subject.no_chat:
            raise ConfigError(subject.no_chat, where="--apply-chat-template", fix="leave it out")
        tokenizer._tokenizer.chat_template = subject.opened.template.text
    stop = {*tokenizer.eos_token_ids, *(subject.opened.template.stop if chat else ())}
    thought = tokenizer.think_end if tokenizer.has_thinking else ""

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
            # Ours: mlx-lm's batches fail on some models, and take prompts longer than the model has positions.
            options = [_options(one.args[1], max_tokens) for one in requests]
            prompts = [tokenizer.encode(one.args[0], add_special_tokens=not chat) for one in requests]
            rooms = [int(one["max_gen_toks"]) for one in options]
            if limit:
                rooms = [min(room, limit - 1) for room in rooms]
                prompts = [prompt[-(limit - room) :] for prompt, room in zip(prompts, rooms, strict=True)]
            found = [""] * len(prompts)
            made = (greedy_batches if subject.batched else greedy_groups)(loaded.model, prompts, rooms, stop)
            for done, (place, tokens, _) in enumerate(made):
                emit(Progress(task=task, done=done + 1, total=len(prompts), unit="questions"))
                found[place] = _cut(tokenizer.decode(tokens), options[place]["until"], thought)
            return found

    return Adapter()


def _request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def _options(given: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """What a task says of its answers, with ``until`` as a list and a limit."""
    until = given.get("until") or []
    most = given.get("max_gen_toks") or max_tokens
    return {**given, "until": [until] if isinstance(until, str) else list(until), "max_gen_toks": int(most)}


def _cut(text: str, until: Sequence[str], thought: str) -> str:
    """What stands behind the thoughts and before the first of the texts that end an answer."""
    answer = text.partition(thought)[2] if thought and thought in text else text
    return answer[: min((place for end in until if end and (place := answer.find(end)) >= 0), default=None)]


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
