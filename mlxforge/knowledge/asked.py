"""What is asked of a model and what comes back, what that may cost, and how a model is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxforge.core.errors import RunFailed

START = "start it: mlxforge serve --model MODEL, ollama serve, or mend the URL"


@dataclass(frozen=True)
class Request:
    """One question to a model.

    Attributes:
        key: what the reply is known by; another for every request.
        messages: ``role`` and ``content`` of each turn.
        schema: the JSON schema of the answer, of the few keywords in :mod:`mlxforge.knowledge.schemas`; None for free text.
        temperature: 0 takes the likeliest token.
        seed: with it and the rest, a local model's answer is settled.
    """

    key: str
    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 1024
    temperature: float = 0.7
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """What became of the request ``key``: ``text``, or an ``error``.

    Attributes:
        text: JSON where the request had a schema and the model kept to it; the caller checks.
        later: the error may pass: the request can be made again. Otherwise it would end as it did.
        cost: US dollars, for what went wrong too.
    """

    key: str
    text: str = ""
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    later: bool = False


@dataclass(frozen=True)
class ProviderSettings:
    """How a provider is reached and what it may cost.

    Attributes:
        model: for ``mlx`` ``tiny``, a folder or a hub id; for ``openai`` the server's name of it, empty for its only one.
        url: for ``openai``; empty for ``$OPENAI_BASE_URL``.
        concurrency: requests answered at a time.
        rpm: requests a minute at most; 0 for no limit.
        timeout: seconds for one reply.
        price_in, price_out: US dollars for a million tokens.
        purse: what may be spent; shared by providers that have one ceiling.
        opener: how ``mlx`` loads a model: name -> (model, template); runs give one that knows runs and adapters too.
    """

    model: str = ""
    url: str = ""
    concurrency: int = 8
    rpm: float = 0.0
    timeout: float = 120.0
    price_in: float = 0.0
    price_out: float = 0.0
    purse: Purse = field(default_factory=lambda: Purse())
    opener: Callable[[str], tuple[Any, Any]] | None = None

    def cost(self, prompt: int, completion: int) -> float:
        """US dollars of a call."""
        return (prompt * self.price_in + completion * self.price_out) / 1e6


class Purse:
    """What may be spent, in US dollars, by all who share it: the most that a call can cost is set aside before it is made."""

    def __init__(self, most: float = 0.0, spent: float = 0.0) -> None:
        self.most, self.spent, self.aside = most, spent, 0.0

    def take(self, bound: float) -> bool:
        """Sets ``bound`` aside; False where that could exceed the ceiling. 0 is no ceiling."""
        if self.most and self.spent + self.aside + bound > self.most:
            return False
        self.aside += bound
        return True

    def settle(self, bound: float, cost: float) -> None:
        """A call for which ``bound`` was set aside came to ``cost``."""
        self.aside -= bound
        self.spent += cost


class CostReached(RunFailed):
    """The ceiling stands in the way of the next call."""
