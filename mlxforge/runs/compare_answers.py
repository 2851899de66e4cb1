"""Two answers to each question held against each other: a model's own, and one that its document bears."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mlxforge.core.errors import ConfigError, RunFailed, did_you_mean
from mlxforge.core.rows import Message, Preference
from mlxforge.knowledge import pairs
from mlxforge.knowledge.asked import Reply, Request
from mlxforge.knowledge.gates import UNQUOTED, names, numbers, share, stems
from mlxforge.knowledge.jobs import Row, Task, Usage
from mlxforge.knowledge.pairs import ABOUT
from mlxforge.knowledge.providers import PROVIDERS, Provider
from mlxforge.knowledge.sampling import passage
from mlxforge.knowledge.store import Store
from mlxforge.knowledge.templates import Prompt
from mlxforge.runs.draw_pairs import pair_row
from mlxforge.runs.judge_server import comparison, verdict
from mlxforge.runs.judges import CHANGED, TIES, Question, Winner, paired_off
from mlxforge.runs.synth_work import used

GROUNDS = ("gold", "open-book")
JUDGE_TOKENS = 512


class Answers(NamedTuple):
    """The two answers to a question, and the text they are about, if there is one."""

    grounded: str
    own: str
    source: str


def _exact(one: Answers) -> str:
    return "equal" if pairs.says(one.own, one.grounded) else ""


def _overlap(one: Answers) -> str:
    return "equal" if max(pairs.overlap(one.own, one.grounded), pairs.says(one.own, one.grounded)) >= pairs.NEAR else ""


# Judges that need no model: why a pair is none, or nothing.
RULES: dict[str, Callable[[Answers], str]] = {"overlap": _overlap, "exact": _exact}
JUDGES = (*RULES, *PROVIDERS)


@dataclass(frozen=True)
class GroundedSettings:
    """What decides the pairs.

    Attributes:
        grounded: ``gold`` takes the row's own answer, ``open-book`` the model's with the chunk in its prompt.
        judge: ``overlap`` or ``exact`` compare words; a provider is asked which answer is better, in both orders.
        limit: questions in all; a larger one goes on with the same job.
        max_tokens: of an answer.

    Raises:
        ConfigError: an unknown judge.
    """

    grounded: str = "gold"
    judge: str = "overlap"
    limit: int | None = None
    max_tokens: int = 512
    temperature: float = 0.7
    seed: int = 0
    prompts: Path | None = None

    def __post_init__(self) -> None:
        if self.judge not in JUDGES:
            raise ConfigError(f"unknown judge '{self.judge}'", where="--judge", fix=did_you_mean(self.judge, JUDGES))
        if self.grounded not in GROUNDS:
            raise ConfigError(f"no answers '{self.grounded}'", where="--grounded", fix=did_you_mean(self.grounded, GROUNDS))


@dataclass
class Compared:
    """A question under way: its answers, what they cost, and why there is no pair, if there is none."""

    task: Task
    source: str
    own: str = ""
    grounded: str = ""
    usage: Usage = field(default_factory=Usage)
    gate: str = ""
    reason: str = ""
    error: Reply | None = None

    def refuse(self, gate: str, reason: str = "") -> None:
        """Notes why there is no pair; the first reason stays."""
        if not self.gate:
            self.gate, self.reason = gate, reason or ABOUT[gate]


@dataclass
class Comparer:
    """Makes the pairs of a few questions at a time. After a call, ``stopped`` is what ends the job, if anything does."""

    store: Store
    settings: GroundedSettings
    asked: Provider
    judge: Provider | None
    prompt: Prompt
    job: str = ""
    stopped: BaseException | None = None

    def __call__(self, tasks: Sequence[Task]) -> list[Compared]:
        """What becomes of each question."""
        held = [Compared(task, self.source(task)) for task in tasks]
        self._answer(held, "own", self._closed)
        if self.settings.grounded == "gold":
            for one in held:
                one.grounded = str(one.task.request["gold"])
        else:
            self._answer(held, "grounded", self._open)
        for one in held:
            self._hold(one)
        if self.judge is not None:
            self._judge([one for one in held if not one.gate and one.error is None])
        return held

    def source(self, task: Task) -> str:
        """The text of a task's chunk, if it has one."""
        return passage(self.store, task.chunk).text if task.chunk is not None else ""

    def _closed(self, one: Compared) -> Request:
        return self._request(f"own {one.task.number}", tuple(one.task.request["prompt"]), self.settings.temperature)

    def _open(self, one: Compared) -> Request:
        return self._request(f"grounded {one.task.number}", self.open_book(one.task), 0.0)

    def open_book(self, task: Task) -> tuple[Mapping[str, str], ...]:
        """The question with its chunk."""
        found = passage(self.store, task.chunk)
        said = "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in task.request["prompt"])
        values = {"title": found.title, "passage": found.text.strip(), "conversation": said, "style": task.style}
        return self.prompt.filled(values)

    def _request(self, key: str, messages: tuple[Mapping[str, str], ...], temperature: float) -> Request:
        return Request(key, messages, None, self.settings.max_tokens, temperature, self.settings.seed)

    def _answer(self, held: Sequence[Compared], name: str, request: Callable[[Compared], Request]) -> None:
        waiting = {f"{name} {one.task.number}": one for one in held if not one.gate and one.error is None}
        for reply in self.asked.complete(request(one) for one in list(waiting.values())):
            one = waiting[reply.key]
            one.usage += used(reply)
            if reply.error.startswith("cut off"):
                one.refuse("cut", reply.error)
            elif reply.error:
                one.error = reply
            else:
                setattr(one, name, reply.text.strip())

    def _hold(self, one: Compared) -> None:
        """What the answers alone say, and a judge that compares words."""
        if one.gate or one.error is not None:
            return
        if not one.own or not one.grounded:
            one.refuse("empty")
        elif pairs.words(one.own) == pairs.words(one.grounded):
            one.refuse("equal")
        elif self.settings.grounded == "open-book" and (reason := ungrounded(one)):
            one.refuse("ungrounded", reason)
        elif (rule := RULES.get(self.settings.judge)) and (gate := rule(Answers(one.grounded, one.own, one.source))):
            one.refuse(gate)

    def _judge(self, held: Sequence[Compared]) -> None:
        """Asks which answer is better, in both orders; only what wins twice counts. Where the judge breaks off, what it has
        answered is decided and the rest stays open."""
        assert self.judge is not None
        by_key = {f"{order} {one.task.number}": one for one in held for order in ("forth", "back")}
        said: dict[str, str] = {}
        try:
            for reply in self.judge.complete(self._judgement(key, one) for key, one in by_key.items()):
                one = by_key[reply.key]
                one.usage += used(reply)
                if reply.error and reply.later:
                    one.error = reply
                said[reply.key] = reply.error or reply.text
        except (RunFailed, KeyboardInterrupt) as error:
            self.stopped = error
        for one in held:
            both = [said.get(f"{order} {one.task.number}") for order in ("forth", "back")]
            if None in both:
                one.error = Reply("", error=f"the judge broke off: {self.stopped or 'no reply'}", later=True)
            elif one.error is None:
                self._decide(one, *map(str, both))

    def _judgement(self, key: str, one: Compared) -> Request:
        answers = (one.grounded, one.own) if key.startswith("forth") else (one.own, one.grounded)
        return Request(key, tuple(comparison(self.question(one), *answers)), None, JUDGE_TOKENS, 0.0)

    def question(self, one: Compared) -> Question:
        """What a judge is told of a question."""
        turns = tuple(Message(turn["role"], turn["content"]) for turn in one.task.request["prompt"])
        known = (Message("system", f"An answer is right if it agrees with this:\n{one.source}"),) if one.source else ()
        return Question((*known, *turns), str(one.task.request["gold"]))

    @staticmethod
    def _decide(one: Compared, forth: str, back: str) -> None:
        replies = iter((forth, back))

        def ask(_: str, __: str) -> tuple[Winner | None, str]:
            said = next(replies)
            return verdict(said), said

        found = paired_off(ask, [one.grounded, one.own], 1)
        if not found.pairs:
            (reason,) = found.dropped
            gate = {TIES: "tie", CHANGED: "changed"}.get(reason, "unclear")
            one.refuse(gate, f"{ABOUT[gate]}: {found.unclear}" if found.unclear else "")
        elif found.pairs[0].better == 1:
            one.refuse("own")

    def row(self, one: Compared) -> Row:
        """The pair as it is written; what is none is kept with its answers and the reason."""
        turns = tuple(Message(turn["role"], turn["content"]) for turn in one.task.request["prompt"])
        chosen, rejected = Message("assistant", one.grounded), Message("assistant", one.own)
        source = {**one.task.request["source"], "job": self.job}
        made_by = {"way": self.settings.judge, "grounded": self.settings.grounded, "model": self.asked.model}
        made_by |= {"judge": self.judge.model} if self.judge else {}
        values = pair_row(Preference(turns, (chosen,), (rejected,)), "", made_by) if not one.gate else None
        if values is None:
            one.refuse("unwritable")
            values = {"prompt": one.task.request["prompt"], "chosen": one.grounded, "rejected": one.own, "made_by": made_by}
        return Row({**values, "source": source}, one.gate, one.reason)


def ungrounded(one: Compared) -> str:
    """What a grounded answer has that neither its passage nor its question has; the words alone are looked at."""
    asked = "\n".join(turn["content"] for turn in one.task.request["prompt"])
    known = f"{asked}\n{one.source}"
    if new := numbers(one.grounded) - numbers(known):
        return f"the passage has no {', '.join(sorted(new)[:3])}"
    if new := names(one.grounded) - set(pairs.words(known)):
        return f"the passage has no {', '.join(sorted(new)[:3])}"
    part = share(one.grounded, stems(known))
    return "" if part >= UNQUOTED else f"{part:.0%} of its words in the passage, not {UNQUOTED:.0%}"
