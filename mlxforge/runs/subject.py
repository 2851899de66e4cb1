"""One evaluated model: what it is asked, and what it gives. In MLX, or a GGUF file in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from mlxforge.core.rows import Chat, Messages, Tools
from mlxforge.evals.graded import Answer, Likelihood, Timing
from mlxforge.evals.report import ModelInfo

WINDOW = 1024  # tokens that a text is read in at a time, as training's own evaluation does by default


class Asked(NamedTuple):
    """A prompt and the answers whose log-probabilities are asked for."""

    prompt: Messages
    answers: tuple[Messages, ...]
    tools: Tools = ()


class Subject(Protocol):
    """A model that is open.

    Attributes:
        info: what it is.
        decides: all besides ``info.hash`` that decides what it gives: its template, numbers, the program that computes.
        notes: what the report's reader should know of how it answers.
        no_chat: why it cannot take conversations; empty where it can.
        no_likelihood: why log-probabilities of given texts cannot be had; empty where they can.
    """

    @property
    def info(self) -> ModelInfo: ...
    @property
    def decides(self) -> Sequence[str]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def no_chat(self) -> str: ...
    @property
    def no_likelihood(self) -> str: ...

    def answers(self, conversations: Sequence[Chat], max_tokens: int) -> Iterator[tuple[int, Answer]]:
        """The greedy answer to each conversation, in the order in which they end, with its place. A conversation that fills
        the model's context has an empty answer of finish ``length``."""
        ...

    def likelihoods(self, documents: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[Likelihood]]]:
        """Each document, given as its passages, with its place: how likely each passage is, given all before it in the window.
        The sums over a document are those of the whole text with its end."""
        ...

    def continuations(self, asked: Sequence[Asked]) -> Iterator[tuple[int, list[Likelihood]]]:
        """How likely each answer is to its prompt, its end of turn among its tokens, with the place of the prompt."""
        ...

    def timed(self, conversation: Chat, max_tokens: int) -> Timing | None:
        """One answer alone: nothing is kept from earlier ones. None for a conversation that fills the model's context."""
        ...

    def peak_memory(self) -> int | None:
        """Bytes at most since this was last asked, or since it was opened; None where it is not known."""
        ...
