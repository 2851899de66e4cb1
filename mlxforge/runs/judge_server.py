"""A judge behind a server that speaks OpenAI's protocol: which of two answers is better, asked in both orders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlxforge.core.errors import RunFailed
from mlxforge.data.formats.turns import written
from mlxforge.knowledge.endpoint import Endpoint, Refused, short
from mlxforge.runs.judges import Question, Verdicts, Winner, paired_off

RULES = (
    "You compare two answers to the last message of a conversation. Prefer the one that is right, does what was asked and is "
    "clear. Neither its length nor its place counts. You may think first. Finish with one line that is VERDICT: A, VERDICT: B, "
    "or VERDICT: TIE where neither is better."
)
THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
VERDICT = re.compile(r"\bverdict\W{1,8}(A|B|tie)\b(?! +tie)", re.IGNORECASE)
ALONE = re.compile(r"\W*(A|B|tie)\W*", re.IGNORECASE)
WINNERS: dict[str, Winner] = {"a": "first", "b": "second", "tie": "tie"}


def verdict(said: str) -> Winner | None:
    """The ``VERDICT: A|B|TIE`` in the last line that has one, or the reply itself where it is nothing else.

    None where there is none, or that line names several, as one that repeats the rules does. Thoughts do not count.
    """
    said = THOUGHTS.sub("", said)
    lines = [found for line in said.splitlines() if (found := VERDICT.findall(line))]
    alone = ALONE.fullmatch(said)
    named = {word.lower() for word in (lines[-1] if lines else [alone[1]] if alone else [])}
    return WINNERS[named.pop()] if len(named) == 1 else None


def comparison(question: Question, one: str, other: str) -> list[dict[str, str]]:
    """What a judge model is asked, as messages."""
    turns = [f"[{turn.role}]\n{turn.content or json.dumps(written(turn).get('tool_calls', []))}" for turn in question.prompt]
    parts = ["# Conversation", *turns, "# Answer A", one, "# Answer B", other, "# Which answer is better?"]
    return [{"role": "system", "content": RULES}, {"role": "user", "content": "\n\n".join(parts)}]


@dataclass
class UrlJudge:
    """A model behind OpenAI's protocol that is asked which of two answers is better, in both orders.

    The key in ``$OPENAI_API_KEY`` is sent over https and to this machine alone, and appears in no message.

    Attributes:
        url: such as ``http://127.0.0.1:8080/v1``.
        model: empty for the one model that the server has.
        max_tokens: of the judge's reply.

    Raises:
        ConfigError: not a URL, nothing answers there, or the server has several models.
    """

    url: str
    model: str = ""
    timeout: float = field(default=120.0, repr=False)  # no part of what it is
    max_tokens: int = 512
    way: str = "url"

    def __post_init__(self) -> None:
        self._endpoint = Endpoint(self.url, option="--judge-url", timeout=self.timeout)
        self.url, self.withholds_key = self._endpoint.url, self._endpoint.withholds_key
        start = "start the judge's server, or mend --judge-url"
        self.model = self._endpoint.model(self.model, flag="--judge-model NAME", start=start)

    @property
    def name(self) -> str:
        """Model and address."""
        return f"{self.model} at {self.url}"

    def choose(self, question: Question, answers: Sequence[str], most: int) -> Verdicts:
        """See :meth:`Judge.choose`."""
        return paired_off(lambda one, other: self._winner(comparison(question, one, other)), answers, most)

    def _winner(self, messages: list[dict[str, str]]) -> tuple[Winner | None, str]:
        said = self._ask(messages)
        return verdict(said), said

    def _ask(self, messages: list[dict[str, str]]) -> str:
        try:
            reply = self._endpoint.chat(self.model, messages, temperature=0, max_tokens=self.max_tokens)
        except Refused as refused:
            raise RunFailed(refused.told, where=self.url) from None
        try:
            return str(reply["choices"][0]["message"].get("content") or "")
        except (LookupError, TypeError, AttributeError):
            raise RunFailed(f"not a reply of OpenAI's protocol: {short(json.dumps(reply))}", where=self.url) from None
