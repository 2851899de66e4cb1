"""A judge over the answers of an evaluation: points for each, and each model's answer against that of the first model.

Two answers are compared in both orders; only what wins twice has won. What a judge says is kept as it comes: after a stop, the
same command asks for the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mlxforge.core.errors import ConfigError, Interrupted, MissingExtraError, MlxforgeError, did_you_mean
from mlxforge.core.events import Progress, Warned
from mlxforge.core.files import bytes_hash
from mlxforge.data.formats.turns import written
from mlxforge.evals.figures import chance
from mlxforge.evals.graded import Graded
from mlxforge.evals.judged import cell, is_right, kappa
from mlxforge.knowledge.asked import Purse, Reply, Request
from mlxforge.knowledge.endpoint import short
from mlxforge.knowledge.providers import PROVIDERS, Provider, provider
from mlxforge.knowledge.schemas import Schema, from_json, problem, record, text_of
from mlxforge.knowledge.templates import read_prompt
from mlxforge.runs.eval_job import Job, JudgeSettings
from mlxforge.runs.eval_kept import Kept
from mlxforge.runs.eval_sets import EvalRow, EvalSet

LOCAL = "mlx"  # the provider whose model is loaded into this process
JUDGED = ("chat",)  # kinds of sets whose answers are judged
TOKENS = 400
LETTERS_A_TOKEN = 4
EXPECTED = 0.2  # of the tokens that a verdict may have
NONE = "(none)"
ASKED: dict[str, Schema] = {  # prompt -> the schema of its answer
    "rubric": record(
        reason=text_of(2, 500, "why, in a sentence"),
        score={"type": "integer", "minimum": 1, "maximum": 5, "description": "1 to 5"},
    ),
    "compare": record(
        reason=text_of(2, 500, "how they differ, in a sentence"), better={"type": "string", "enum": ["A", "B", "tie"]}
    ),
}
FORTH = {"A": 0.0, "B": 1.0, "tie": 0.5}  # the first model's answer stands first: what its verdict is worth to the other
BACK = {"A": 1.0, "B": 0.0, "tie": 0.5}


class Verdict(NamedTuple):
    """What is wanted: of which set, row and model, ``rubric``, ``forth`` or ``back``; and the key of the request."""

    set: str
    row: int
    label: str
    what: str
    key: str


@dataclass
class Judge:
    """A judge that can be asked. One in this process is loaded at the first question, when the evaluated models are gone.

    Raises:
        ConfigError: no such provider, no model named, nothing answers, or prompts that cannot be used.
        ModelError, RunError: no such model.
        MissingExtraError: a local judge without the package ``llguidance``.
    """

    settings: JudgeSettings
    prompts: Path | None
    runs_dir: Path
    purse: Purse = field(default_factory=Purse)

    def __post_init__(self) -> None:
        name = self.settings.provider
        if name not in PROVIDERS:
            raise ConfigError(f"unknown provider '{name}'", where="--judge", fix=did_you_mean(name, PROVIDERS))
        self._prompts = {what: read_prompt(what, self.prompts) for what in ASKED}
        self.purse.most = self.settings.max_cost
        self._asked: Provider | None = None
        reached = self.settings.reached
        if name == LOCAL:
            self.model, weights = reached.model, _weights(reached.model, self.runs_dir)
        else:
            self.model, weights = self.asked.model, reached.url
        # All that decides a verdict besides the question.
        self.kept_as = bytes_hash("judge", name, self.model, weights)[:32]

    @property
    def asked(self) -> Provider:
        """The provider, ready."""
        if self._asked is None:
            try:
                self._asked = provider(self.settings.provider, replace(self.settings.reached, purse=self.purse))
            except ConfigError as error:  # in the words of this command
                where, fix = (text.replace("--url", "--judge-url") for text in (error.where, error.fix))
                raise ConfigError(error.what, where=where, fix=fix.replace("--model NAME", "--judge-model NAME")) from error
        return self._asked

    def close(self) -> None:
        """Lets a model in this process go."""
        self._asked = None

    def request(self, what: str, row: EvalRow, **answers: str) -> Request:
        """A question about answers to a row; equal questions have equal keys."""
        assert row.prompt is not None
        turns = (written(turn) for turn in row.prompt.messages)
        said = "\n\n".join(f"[{turn['role']}]\n{turn.get('content') or turn.get('tool_calls', '')}" for turn in turns)
        values = {"conversation": said, "reference": "\n".join(row.references) or NONE}
        messages = self._prompts[what].filled(values | {name: text.strip() or NONE for name, text in answers.items()})
        key = bytes_hash(what, *(turn["content"] for turn in messages))
        return Request(key, messages, ASKED[what], TOKENS, 0.0)


def _weights(model: str, runs_dir: Path) -> str:
    """The hash of a local judge's weights."""
    from mlxforge.runs.subjects import info_of, name_models

    if not model:
        raise ConfigError("no judge named", where="--judge-model", fix="'tiny', a folder, a hub id, or run:NAME")
    if find_spec("llguidance") is None:
        raise MissingExtraError("llguidance", "synth", "a judge in this process")
    (named,) = name_models([model], runs_dir)
    if named.file is not None:
        raise ConfigError("a GGUF file does not judge", where="--judge-model", fix="serve it, and give --judge openai")
    return info_of(named).hash


def judge_answers(job: Job, judge: Judge) -> MlxforgeError | None:
    """Fills ``win`` and ``rubric`` of what models gave.

    Returns:
        What stopped the judge before its end, if anything did; what it said until then is filled in.

    Raises:
        Interrupted: stopped by the user; what was said is kept.
    """
    requests: dict[str, Request] = {}
    wanted = list(_wanted(job, judge, requests))
    with Kept(judge.kept_as, job.settings.fresh) as kept:
        stopped = _ask(job, judge, requests, kept)
        said = {key: found for key in requests if (found := kept.get(key))}
    judge.close()
    found = [(one, said[one.key], _value(said[one.key], one.what)) for one in wanted if one.key in said]
    verdicts = {one[:4]: value for one, _, value in found if value is not None}
    _fill(job, verdicts)
    job.note(f"judge: {judge.model} ({judge.settings.provider})")
    if bad := [str(text["error"] or short(text["text"]) or "nothing") for _, text, value in found if value is None]:
        job.notes.append(f"judge: no verdict in {len(bad):,} of {len(wanted):,} replies, such as: {bad[0]}")
        job.emit(Warned(message=job.notes[-1]))
    for note in _told(job, verdicts):
        job.note(note)
    if stopped is not None:
        job.notes.append(f"judge: stopped with {len(requests) - len(said):,} of {len(requests):,} questions to go: {stopped}")
        job.emit(Warned(message=job.notes[-1]))
    return stopped


def _judged_sets(job: Job) -> list[EvalSet]:
    return [one for one in job.sets if one.kind in JUDGED]


def _wanted(job: Job, judge: Judge, requests: dict[str, Request]) -> Iterator[Verdict]:
    """All verdicts that are wanted, row by row; what must be asked for them is put into ``requests``."""
    first, *others = [named.label for named in job.models]
    for one in _judged_sets(job):
        graded = {label: job.graded[label][one.name] for label in (first, *others)}
        for row in one.rows:
            answers = {label: given for label in graded if (given := graded[label][row.index].answer) is not None}
            asked = [("rubric", label, judge.request("rubric", row, answer=text)) for label, text in answers.items()]
            for label in others:
                # Equal answers tie without a question.
                if {first, label} <= answers.keys() and answers[first].strip() != answers[label].strip():
                    mine, theirs = answers[first], answers[label]
                    asked.append(("forth", label, judge.request("compare", row, first=mine, second=theirs)))
                    asked.append(("back", label, judge.request("compare", row, first=theirs, second=mine)))
            for what, label, request in asked:
                requests[request.key] = request
                yield Verdict(one.name, row.index, label, what, request.key)


def _ask(job: Job, judge: Judge, requests: dict[str, Request], kept: Kept) -> MlxforgeError | None:
    """Asks what is not kept, and keeps it as it comes; what stopped it."""
    missing = [request for key, request in requests.items() if kept.get(key) is None]
    judge.purse.spent = sum(found["cost"] for key in requests if (found := kept.get(key)))
    task, done = f"judge: {judge.model}", len(requests) - len(missing)
    job.emit(Progress(task=task, done=done, total=len(requests), unit="questions"))
    if not missing:
        return None
    try:
        for reply in judge.asked.complete(missing):
            if not reply.later:
                kept.add(reply.key, _plain(reply))
            done += 1
            job.emit(Progress(task=task, done=done, total=len(requests), unit="questions"))
    except KeyboardInterrupt:
        raise Interrupted("stopped: what the judge said is kept", fix="the same command goes on") from None
    except MlxforgeError as error:  # also of a local judge that cannot be loaded: what models answered is not lost
        return error
    return None


def _plain(reply: Reply) -> dict[str, Any]:
    tokens = [reply.prompt_tokens, reply.completion_tokens]
    return {"text": reply.text, "error": reply.error, "tokens": tokens, "cost": reply.cost}


def _value(found: dict[str, Any], what: str) -> dict[str, Any] | None:
    """A verdict with its reason; None where it is none."""
    value = None if found["error"] else from_json(found["text"])
    schema = ASKED["rubric" if what == "rubric" else "compare"]
    return None if value is None or problem(value, schema) else value


Verdicts = dict[tuple[str, int, str, str], dict[str, Any]]


def _fill(job: Job, verdicts: Verdicts) -> None:
    first = job.models[0].label
    for one in _judged_sets(job):
        for label, by_set in job.graded.items():
            for place, graded in enumerate(by_set[one.name]):
                rubric = verdicts.get((one.name, place, label, "rubric"))
                win = None if label == first else _win(job, one.name, place, label, verdicts)
                by_set[one.name][place] = replace(graded, rubric=float(rubric["score"]) if rubric else None, win=win)
                said = {what: found for what in WORDS if (found := verdicts.get((one.name, place, label, what)))}
                if said:
                    job.judged[label, one.name, place] = {WORDS[what]: found for what, found in said.items()}


# What is asked -> what `rows.jsonl` calls it.
WORDS = {"rubric": "rubric", "forth": "as answer B", "back": "as answer A"}


def _win(job: Job, name: str, place: int, label: str, verdicts: Verdicts) -> float | None:
    """1, 0.5 or 0; None where a verdict is missing."""
    first = job.graded[job.models[0].label][name][place].answer
    own = job.graded[label][name][place].answer
    if first is None or own is None:
        return None
    if first.strip() == own.strip():
        return 0.5
    forth, back = (verdicts.get((name, place, label, what)) for what in ("forth", "back"))
    if forth is None or back is None:
        return None
    both = FORTH[forth["better"]], BACK[back["better"]]
    return both[0] if both[0] == both[1] else 0.5


def _told(job: Job, verdicts: Verdicts) -> Iterator[str]:
    """What a reader should know of the comparisons: where order decided, and how far exact match agrees."""
    first, *others = [named.label for named in job.models]
    for one in _judged_sets(job):
        for label in others:
            pairs = list(zip(job.graded[label][one.name], job.graded[first][one.name], strict=True))
            known = [(mine, theirs) for mine, theirs in pairs if mine.win is not None]
            if not known:
                continue
            count = Counter(mine.win for mine, _ in known)
            equal = sum((mine.answer or "").strip() == (theirs.answer or "").strip() for mine, theirs in known)
            turned = sum(_turned(one.name, place, label, verdicts) for place in range(len(pairs)))
            told = f"{count[1.0]:,} won, {count[0.0]:,} lost, {count[0.5]:,} tied, {chance(_by_chance(count[1.0], count[0.0]))}"
            why = f"{equal:,} equal answers, {turned:,} verdicts that changed with the order"
            yield f"judge: {one.name}, {label} against {first}: {told} ({why}){_agreed(known)}"


def _by_chance(won: int, lost: int) -> float:
    """p of the sign test: how likely a fair coin falls so unevenly, ties left out."""
    tosses = won + lost
    ways = sum(math.comb(tosses, heads) for heads in range(min(won, lost) + 1))
    return min(1.0, 2 * ways / 2**tosses)


def _turned(name: str, place: int, label: str, verdicts: Verdicts) -> bool:
    forth, back = (verdicts.get((name, place, label, what)) for what in ("forth", "back"))
    return bool(forth and back and FORTH[forth["better"]] != BACK[back["better"]])


def _agreed(known: Sequence[tuple[Graded, Graded]]) -> str:
    """How far the judge agrees with exact match where that tells two answers apart; empty where it tells none."""
    import numpy as np

    right = [(mine.win, is_right(mine), is_right(theirs)) for mine, theirs in known]
    told = [
        (round(2 * win), 1 + mine - theirs)
        for win, mine, theirs in right
        if win is not None and mine is not None and theirs is not None
    ]
    apart = [judged == exact for judged, exact in told if exact != 1]
    if not apart:
        return ""
    beyond = float(kappa(np.array([cell(*one, 3) for one in told]), np.ones((1, len(told))))[0])
    kappa_told = f"; kappa over all {beyond:.2f}" if math.isfinite(beyond) else ""
    return f"; of {len(apart):,} that exact match tells apart it prefers the right one in {sum(apart):,}{kappa_told}"


def estimate(job: Job, judge: JudgeSettings, prompts: Path | None) -> dict[str, Any]:
    """What a judge would come to at most, asking nobody: ``tasks`` (questions), ``rows``, ``prompt_tokens``,
    ``completion_tokens`` and ``cost`` (``expected`` and ``most``), ``prompts``: the first of each kind, filled.

    An answer is taken to be as long as the reference, or as it may be where there is none.
    """
    asking = {what: read_prompt(what, prompts) for what in ASKED}
    models = len(job.models)
    times = {"rubric": models, "compare": 2 * (models - 1)}
    sets = _judged_sets(job)
    shown: dict[str, dict[str, Any]] = {}
    tokens = 0
    for row in (row for one in sets for row in one.rows):
        assert row.prompt is not None
        answer = row.references[0] if row.references else "…" * LETTERS_A_TOKEN * job.settings.max_tokens
        said = "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in row.prompt.messages)
        values = {"conversation": said, "reference": "\n".join(row.references) or NONE}
        values |= dict.fromkeys(("answer", "first", "second"), answer)
        for what, number in times.items():
            messages = asking[what].filled(values)
            tokens += number * sum(len(turn["content"]) for turn in messages) // LETTERS_A_TOKEN
            if number:
                shown.setdefault(what, {"style": what, "messages": list(messages)})
    rows = sum(len(one.rows) for one in sets)
    tasks = rows * sum(times.values())
    expected, most = int(tasks * TOKENS * EXPECTED), tasks * TOKENS
    cost = judge.reached.cost
    return {
        "tasks": tasks,
        "rows": rows * models,
        "prompt_tokens": tokens,
        "completion_tokens": {"expected": expected, "most": most},
        "cost": {"expected": round(cost(tokens, expected), 4), "most": round(cost(tokens, most), 4)},
        "prompts": list(shown.values()),
    }
