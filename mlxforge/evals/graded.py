"""What metrics are made of: a row with what a model gave for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Finish = Literal["stop", "length"]


class Likelihood(NamedTuple):
    """How likely a text is: ``nats`` is minus the sum of its tokens' log-probabilities; ``bytes`` of UTF-8 spell it."""

    nats: float
    tokens: int
    bytes: int


class Answer(NamedTuple):
    """What a model wrote, without thoughts and without the token that ends it; ``finish`` is None where nobody could tell."""

    text: str
    finish: Finish | None
    tokens: int
    prompt_tokens: int


class Timing(NamedTuple):
    """Seconds from the request to the first token and to the last, and the tokens written."""

    first_s: float
    total_s: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One row, and what one model gave for it. What a row has not is None or empty: metrics of it leave the row out.

    Attributes:
        answer: the text that was generated.
        references: right answers, the best of which counts.
        schema: the JSON schema that the row's answer must fit; ``x-thresholds`` in it are the confidence limits of commands.
        likelihood: of a whole text.
        continuations: of each choice given the prompt; for a pair, of the chosen answer and of the rejected one.
        right: place of the right choice among the continuations.
        hit: whether the passages put into the prompt hold the one asked about.
        win: the judge's verdict against the other model: 1 won, 0.5 tie, 0 lost.
        rubric: the judge's points.
    """

    answer: str | None = None
    finish: Finish | None = None
    references: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    likelihood: Likelihood | None = None
    continuations: tuple[Likelihood, ...] = ()
    right: int = 0
    timing: Timing | None = None
    hit: float | None = None
    win: float | None = None
    rubric: float | None = None

    @property
    def empty(self) -> bool:
        """Whether there is an answer and nothing stands in it."""
        return self.answer is not None and not self.answer.strip()
