"""Judges of a model's answers, and the one that is any command.

A judge is asked about the answers to one prompt and says which pairs of them are a better and a worse one. What it leaves
undecided is counted by reason. The judge behind a server is in :mod:`mlxforge.runs.judge_server`.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from mlxforge.core.errors import ConfigError, RunFailed
from mlxforge.core.rows import Messages
from mlxforge.data.formats.turns import written
from mlxforge.knowledge.endpoint import short

TIES, CHANGED, UNCLEAR = "ties", "verdicts that changed with the order", "unclear verdicts"
Winner = Literal["first", "second", "tie"]


class Question(NamedTuple):
    """A prompt, and the text of the row's own answer to it."""

    prompt: Messages
    gold: str


class Verdict(NamedTuple):
    """Of the answers to one prompt, which is better and which worse, by index; and their scores where they have some."""

    better: int
    worse: int
    scores: tuple[float, float] | None = None


@dataclass
class Verdicts:
    """What a judge made of one prompt's answers.

    Attributes:
        dropped: what is undecided, by reason: pairs, or for scores that are none, answers.
        unclear: the last thing said that was no verdict.
    """

    pairs: list[Verdict] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    unclear: str = ""

    def no_verdict(self, said: str) -> None:
        """Keeps what was said instead of a verdict."""
        self.unclear = short(said) or "nothing"


class Judge(Protocol):
    """Decides between answers. ``name`` is what provenance calls it; ``way`` is ``command`` or ``url``."""

    @property
    def way(self) -> str: ...

    @property
    def name(self) -> str: ...

    def choose(self, question: Question, answers: Sequence[str], most: int) -> Verdicts:
        """At most ``most`` pairs of the answers.

        Raises:
            RunFailed: the judge does not work.
        """
        ...


def ranked(scores: Sequence[float | None], most: int) -> Iterable[Verdict]:
    """The best with the worst, the second best with the second worst, and so on while one is truly better."""
    known = [(score, index) for index, score in enumerate(scores) if score is not None]
    order = sorted(known, key=lambda one: (-one[0], one[1]))
    for (best, better), (worst, worse) in zip(order[: min(most, len(order) // 2)], reversed(order), strict=False):
        if best > worst:
            yield Verdict(better, worse, (best, worst))


def paired_off(ask: Callable[[str, str], tuple[Winner | None, str]], answers: Sequence[str], most: int) -> Verdicts:
    """The first answer against the second, the third against the fourth and so on, each in both orders.

    Only what is better in both orders counts.

    Args:
        ask: which of two texts is better, None where that is not clear, and what was said.
    """
    found = Verdicts()
    for one in range(0, len(answers) - 1, 2):
        if len(found.pairs) == most:
            break
        other = one + 1
        forth, said = ask(answers[one], answers[other])
        back, again = ask(answers[other], answers[one])
        if forth is None or back is None:
            found.dropped[UNCLEAR] += 1
            found.no_verdict(said if forth is None else again)
        elif forth == back == "tie":
            found.dropped[TIES] += 1
        elif "tie" in (forth, back) or forth == back:
            found.dropped[CHANGED] += 1
        else:
            found.pairs.append(Verdict(one, other) if forth == "first" else Verdict(other, one))
    return found


@dataclass(frozen=True)
class CommandJudge:
    """A command that is started once a judgement, without a shell: one JSON object on stdin, a number on stdout.

    The object is ``{"prompt": [turns], "gold": text, "answer": text}``, and the number the answer's score. With ``pairwise``
    it is ``{"prompt", "gold", "answers": [one, other]}``, and the number 1 or 2 for the better one or 0 for a tie.

    Raises:
        ConfigError: no such command.
    """

    command: str
    pairwise: bool = False
    timeout: float = field(default=120.0, repr=False)  # no part of what it is
    way: str = "command"

    def __post_init__(self) -> None:
        try:
            program = next(iter(shlex.split(self.command)), "")
        except ValueError as error:
            raise ConfigError(f"not a command: {error}", where="--judge", fix="close the quotes") from error
        if not shutil.which(program):
            fix = 'such as --judge "python score.py"'
            raise ConfigError(f"no program '{program}'", where="--judge", fix=fix)

    @property
    def name(self) -> str:
        """The command."""
        return self.command

    def choose(self, question: Question, answers: Sequence[str], most: int) -> Verdicts:
        """See :meth:`Judge.choose`."""
        asked = {"prompt": [written(message) for message in question.prompt], "gold": question.gold}
        if self.pairwise:
            return paired_off(lambda one, other: self._winner({**asked, "answers": [one, other]}), answers, most)
        found, scores = Verdicts(), list[float | None]()
        for answer in answers:
            said = self._run({**asked, "answer": answer})
            scores.append(_number(said))
            if scores[-1] is None:
                found.dropped[UNCLEAR] += 1
                found.no_verdict(said)
        found.pairs += ranked(scores, most)
        if not found.pairs and sum(score is not None for score in scores) > 1:
            found.dropped[TIES] += 1
        return found

    def _winner(self, asked: dict[str, Any]) -> tuple[Winner | None, str]:
        said = self._run(asked)
        winners: dict[float | None, Winner] = {0: "tie", 1: "first", 2: "second"}
        return winners.get(_number(said)), said

    def _run(self, asked: dict[str, Any]) -> str:
        # A file, not a pipe: a command that ends without reading it all would break the pipe.
        with tempfile.TemporaryFile() as stdin:
            stdin.write(json.dumps(asked, ensure_ascii=False).encode() + b"\n")
            stdin.seek(0)
            words = shlex.split(self.command)
            try:
                done = subprocess.run(words, stdin=stdin, capture_output=True, timeout=self.timeout, check=False)
            except subprocess.TimeoutExpired:
                fix = "a larger --judge-timeout"
                raise RunFailed(f"no answer within {self.timeout:g} seconds", where=self._where, fix=fix) from None
            except OSError as error:
                raise RunFailed(f"cannot be started: {error.strerror or error}", where=self._where) from error
        if done.returncode:
            last = short((done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1])
            raise RunFailed(f"ended with exit code {done.returncode}: {last}", where=self._where)
        return done.stdout.decode("utf-8", "replace")

    @property
    def _where(self) -> str:
        return f"judge '{short(self.command)}'"


def _number(said: str) -> float | None:
    try:
        value = float(said)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
