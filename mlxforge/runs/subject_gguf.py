"""A GGUF file in llama.cpp as a subject of evaluation: its server answers, its library tells log-probabilities."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from mlxforge.core.errors import DataError, ModelError
from mlxforge.core.rows import Chat, Messages
from mlxforge.data.boundaries import mark
from mlxforge.data.formats.turns import written
from mlxforge.evals.graded import Answer, Likelihood, Timing
from mlxforge.evals.report import ModelInfo
from mlxforge.export.llama import LlamaCpp, LlamaFailed, version
from mlxforge.export.llama_scores import LlamaScores
from mlxforge.models.streaming import ANSWER, CHANNELS, THOUGHT, Splitter, first_kind
from mlxforge.runs.passages import Passages, Spelled
from mlxforge.runs.subject import WINDOW, Asked

CONTEXT = 4096  # tokens of a prompt and its answer
THINK = {"<think>": THOUGHT, "</think>": ANSWER}
AGREE = 0.25  # how far the library's log-probability may be from the server's, in nats: they round otherwise
PROBE = "The old mill by the river was built in 1984."


@dataclass
class GgufSubject:
    """See :class:`mlxforge.runs.subject.Subject`. It computes as llama.cpp does by itself: on a GPU where it has one."""

    file: Path
    info: ModelInfo
    window: int = WINDOW
    thinking: bool | None = None
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    def __enter__(self) -> GgufSubject:
        self.llama = self._open.enter_context(LlamaCpp(self.file, context=CONTEXT, plain=True))
        self.named = self.llama.info
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    notes: tuple[str, ...] = ()

    @property
    def decides(self) -> list[str]:
        """See :class:`Subject`."""
        return [version(), str(CONTEXT)]

    @cached_property
    def no_chat(self) -> str:
        """See :class:`Subject`."""
        return "" if self.named["chat_template"] else "the file has no chat template"

    @cached_property
    def no_likelihood(self) -> str:
        """See :class:`Subject`: the library is held against the server."""
        try:
            ids = [self.ends[0], *self.llama.tokenize(PROBE)]
            known, values = self.llama.logprobs(ids[:-1], 1)
            found = float(self.scores.log_probs([*ids[:-1], int(known[0])])[-1])
        except LlamaFailed as error:
            return error.what
        if abs(found - float(values[0])) > AGREE:
            return "llama.cpp's library and its server disagree on log-probabilities: this version of xllamacpp is not known"
        return ""

    @cached_property
    def scores(self) -> LlamaScores:
        """What tells log-probabilities of given tokens."""
        return self._open.enter_context(LlamaScores(self.file, max(self.window, CONTEXT)))

    @cached_property
    def header(self) -> Header:
        """What the file says of its tokens."""
        return header(self.file)

    @cached_property
    def ends(self) -> tuple[int, int]:
        """The ids before and after a text, as training has them: BOS or, where there is none, EOS; and EOS."""
        end = self.header.ids["eos"]
        return self.header.ids.get("bos", end), end

    @cached_property
    def turn_ends(self) -> list[str]:
        """The tokens that end a turn, the usual one first."""
        return [self.header.tokens[self.header.ids[name]] for name in ("eot", "eos") if name in self.header.ids]

    def prompt(self, conversation: Chat) -> str:
        """The conversation by the file's own template."""
        if conversation.tools:
            raise DataError("tools in a prompt are not put to a GGUF file", where=self.info.label, fix="evaluate these in MLX")
        return self.llama.chat_prompt(
            [_turn(turn) for turn in map(written, conversation.messages)], thinking=bool(self.thinking)
        )

    def answers(self, conversations: Sequence[Chat], max_tokens: int) -> Iterator[tuple[int, Answer]]:
        """See :class:`Subject`: one after the other, the beginning that prompts share is read once."""
        for index, conversation in enumerate(conversations):
            text = self.prompt(conversation)
            ids = self.llama.tokenize(text, special=True, bos=True)
            room = min(max_tokens, CONTEXT - len(ids))
            if room <= 0:
                yield index, Answer("", "length", 0, len(ids))
                continue
            made = self._complete(ids, room, cache=True)
            ended = made["stop_type"] == "eos"
            said = _answer(text, made["content"])
            # The token that ends it is counted by llama.cpp.
            yield index, Answer(said, "stop" if ended else "length", int(made["tokens_predicted"]) - ended, len(ids))

    def _complete(self, ids: Sequence[int], room: int, *, cache: bool) -> Any:
        settings = {"n_predict": room, "temperature": 0, "cache_prompt": cache, "add_special": False}
        return self.llama.ask("/completion", {"prompt": list(ids), **settings})

    def likelihoods(self, documents: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[Likelihood]]]:
        """See :class:`Subject`."""
        marks = np.zeros(self.named["n_vocab"], np.uint8)
        held = Passages(documents, list(self._spelled(documents, marks)), marks, self.window)
        for index, ids in enumerate(held.windows):
            yield from held.add(index, self.scores.log_probs(ids.tolist()))

    def _spelled(self, documents: Sequence[Sequence[str]], marks: Any) -> Iterator[Spelled]:
        """Documents as llama.cpp reads them; what their tokens tell of boundaries is put into ``marks``."""
        for parts in documents:
            body = {"content": "".join(parts), "add_special": False, "parse_special": True, "with_pieces": True}
            ids, starts, begin = [], [], 0
            for token in self.llama.ask("/tokenize", body)["tokens"]:
                piece = token["piece"]
                data = piece.encode() if isinstance(piece, str) else bytes(piece)
                ids.append(int(token["id"]))
                starts.append(begin)
                begin += len(data)
                marks[ids[-1]] = mark(data.decode(errors="replace"))
            start, end = self.ends
            yield Spelled(np.array([start, *ids, end], np.int64), starts, [len(part.encode()) for part in parts])

    def continuations(self, asked: Sequence[Asked]) -> Iterator[tuple[int, list[Likelihood]]]:
        """See :class:`Subject`.

        Raises:
            DataError: a prompt with its answers is longer than the context.
        """
        for index, one in enumerate(asked):
            text = self.prompt(Chat(one.prompt, one.tools))
            prompt = self.llama.tokenize(text, special=True, bos=True)
            yield index, [self._continued(index, text, prompt, one.prompt, answer) for answer in one.answers]

    def _continued(self, index: int, text: str, prompt: list[int], asked: Messages, answer: Messages) -> Likelihood:
        """Of one answer with its end of turn."""
        said = self.llama.tokenize(self._written(text, asked, answer), special=True)
        if len(prompt) + len(said) - 1 > max(self.window, CONTEXT):
            what = f"row {index + 1}: {len(prompt) + len(said):,} tokens, where {max(self.window, CONTEXT):,} are read"
            raise DataError(what, where=self.info.label, fix="shorten it, or leave the row out")
        values = self.scores.log_probs([*prompt, *said])[len(prompt) - 1 :]
        size = sum(len(message.content.encode()) for message in answer)
        return Likelihood(-float(values.sum()), len(said), size)

    def _written(self, prompt: str, asked: Messages, answer: Messages) -> str:
        """What the template writes for an answer behind its prompt, up to the end of the turn."""
        turns = [_turn(turn) for turn in map(written, (*asked, *answer))]
        whole = str(self.llama.ask("/apply-template", {"messages": turns, "add_generation_prompt": False})["prompt"])
        content = answer[-1].content
        place = whole.rfind(content) if len(answer) == 1 else -1
        behind = whole[len(prompt) :] if whole.startswith(prompt) else whole[place:] if place >= 0 else content
        begin = len(content) if len(answer) == 1 else behind.rfind(content) + len(content)
        found = [(at, end) for end in self.turn_ends if (at := behind.find(end, begin)) >= 0]
        if not found:
            return behind.rstrip("\n") + self.turn_ends[0]
        at, end = min(found)
        return behind[: at + len(end)]

    def timed(self, conversation: Chat, max_tokens: int) -> Timing | None:
        """See :class:`Subject`. Time to the first token is what llama.cpp says it took to read the prompt."""
        ids = self.llama.tokenize(self.prompt(conversation), special=True, bos=True)
        room = min(max_tokens, CONTEXT - len(ids))
        if room <= 0:
            return None
        began = time.perf_counter()
        made = self._complete(ids, room, cache=False)
        total = time.perf_counter() - began
        return Timing(min(total, made["timings"]["prompt_ms"] / 1000), total, int(made["tokens_predicted"]))

    def peak_memory(self) -> int | None:
        """See :class:`Subject`."""
        return None


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn as llama.cpp takes it."""
    return {key: value for key, value in turn.items() if key != "weight"}


def _answer(prompt: str, text: str) -> str:
    """A reply without its thoughts."""
    cuts = CHANNELS if "<|channel|>" in text else THINK
    pieces = Splitter(cuts, first_kind(cuts, prompt[-32:])).feed(text, last=True)
    return "".join(piece.text for piece in pieces if piece.kind == ANSWER).strip()


class Header(NamedTuple):
    """``tokens`` by id, and ``ids`` of those with a part to play: ``bos``, ``eos``, ``eot``."""

    tokens: list[str]
    ids: dict[str, int]


def header(file: Path) -> Header:
    """What a file says of its tokens.

    Raises:
        ModelError: no GGUF file, or one without a vocabulary.
    """
    from gguf import GGUFReader

    try:
        fields = GGUFReader(file).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        names = (name for name in ("bos", "eos", "eot") if f"tokenizer.ggml.{name}_token_id" in fields)
        ids = {name: int(fields[f"tokenizer.ggml.{name}_token_id"].contents()) for name in names}
    except Exception as error:  # a damaged file fails in many ways
        raise ModelError("not a GGUF file with a vocabulary", where=str(file), fix="export it again") from error
    if "eos" not in ids:
        raise ModelError("the file names no token that ends a text", where=str(file), fix="export it again")
    return Header(tokens, ids)


def vocabulary_of(file: Path) -> dict[str, int]:
    """Tokens and their ids, without those that only pad; errors as :func:`header`."""
    return {token: index for index, token in enumerate(header(file).tokens) if not token.startswith("[PAD")}
