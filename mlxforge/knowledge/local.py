"""The provider ``mlx``: a model in this process, batched by mlx-lm, each answer held to its own schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import mlx.core as mx

from mlxforge.core.errors import ConfigError
from mlxforge.core.files import bytes_hash
from mlxforge.core.rows import Message
from mlxforge.knowledge.asked import ProviderSettings, Reply, Request
from mlxforge.knowledge.constrained import Constrainer, Constraint
from mlxforge.models.generate import batches
from mlxforge.models.load import embedding_rows
from mlxforge.models.render import TemplateRefused
from mlxforge.models.streaming import HEADER, answer_in, context_length, first_kind, markers

Sampler = Callable[[mx.array], mx.array]
PREFILL = 8  # prompts read together
FINAL = "<|channel|>final<|message|>"  # gpt-oss: the header of an answer, which a model writes itself where it is free


@dataclass
class Answering:
    """A request under way."""

    request: Request
    prompt: list[int]
    constraint: Constraint | None
    tokens: list[int] = field(default_factory=list)


class LocalProvider:
    """See :class:`mlxforge.knowledge.providers.Provider`. What it writes depends on a request alone, but for the rounding of
    sums, which differs with the requests that are answered together.

    Raises:
        ModelError: the model cannot be opened.
    """

    def __init__(self, settings: ProviderSettings) -> None:
        if not settings.model:
            raise ConfigError("no model", where="--model", fix="'tiny', a folder, or a hub id")
        self.model, self.settings = settings.model, settings
        self.loaded, self.template = (settings.opener or _open)(settings.model)
        self.limit = context_length(self.loaded.config)
        self.stop = sorted(self.template.stop)
        self.cuts = markers(self.loaded.detected, self.template.think)

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """See :class:`Provider`."""
        yield from (self._together if self._batched else self._alone)(iter(requests))

    @cached_property
    def _batched(self) -> bool:
        return batches(self.loaded.model)

    def _together(self, requests: Iterator[Request]) -> Iterator[Reply]:
        from mlx_lm.generate import BatchGenerator

        together = self.settings.concurrency
        generator = BatchGenerator(
            self.loaded.model,
            stop_tokens=[[token] for token in self.stop],
            completion_batch_size=together,
            prefill_batch_size=min(PREFILL, together),
        )
        answering: dict[int, Answering] = {}
        try:
            while True:
                for request in islice(requests, together - len(answering)):
                    begun = self._begin(request)
                    if isinstance(begun, Reply):
                        yield begun
                    else:
                        answering[self._insert(generator, begun)] = begun
                if not answering:
                    return
                for step in generator.next_generated():
                    answering[step.uid].tokens.append(step.token)
                    if step.finish_reason:
                        yield self._reply(answering.pop(step.uid))
        finally:
            generator.close()

    def _insert(self, generator: Any, one: Answering) -> int:
        processors = [one.constraint] if one.constraint else []
        (number,) = generator.insert(
            [one.prompt],
            max_tokens=[one.request.max_tokens],
            samplers=[sampler(one.request)],
            logits_processors=[processors],
        )
        return int(number)

    def _alone(self, requests: Iterator[Request]) -> Iterator[Reply]:
        """One after the other, for models whose cache mlx-lm cannot batch."""
        from mlx_lm.generate import generate_step

        for request in requests:
            one = self._begin(request)
            if isinstance(one, Reply):
                yield one
                continue
            processors = [one.constraint] if one.constraint else []
            for token, _ in generate_step(
                mx.array(one.prompt),
                self.loaded.model,
                max_tokens=request.max_tokens,
                sampler=sampler(request),
                logits_processors=processors,
            ):
                one.tokens.append(int(token))
                if token in self.stop:
                    break
            yield self._reply(one)

    def _begin(self, request: Request) -> Answering | Reply:
        messages = tuple(Message(turn["role"], turn["content"]) for turn in request.messages)  # type: ignore[arg-type]
        try:
            prompt = self.template.prompt(messages, thinking=False)
        except TemplateRefused as error:
            return Reply(request.key, error=f"the chat template refuses the prompt: {error}")
        if request.schema is not None and first_kind(self.cuts, self.loaded.tokenizer.decode(prompt[-8:])) == HEADER:
            prompt = prompt + self.template.encode(FINAL)[0]
        if self.limit is not None and len(prompt) + request.max_tokens > self.limit:
            what = f"{len(prompt)} tokens of prompt and {request.max_tokens} of answer, the model's context is {self.limit}"
            return Reply(request.key, error=what)
        constraint = None if request.schema is None else self._constrainer(request.schema, request.max_tokens)
        return Answering(request, prompt, constraint)

    @cached_property
    def _constrainer(self) -> Constrainer:
        tokenizer: Any = self.loaded.tokenizer._tokenizer.backend_tokenizer
        return Constrainer(tokenizer.to_str(), embedding_rows(self.loaded.model), self.stop)

    def _reply(self, one: Answering) -> Reply:
        reply = Reply(one.request.key, prompt_tokens=len(one.prompt), completion_tokens=len(one.tokens))
        if one.constraint:
            return replace(reply, text=self._whole(one.constraint, one.tokens))
        if one.tokens[-1] not in self.stop:
            return replace(reply, error=f"cut off at {one.request.max_tokens} tokens")
        return replace(reply, text=answer_in(self.loaded.tokenizer, self.cuts, one.prompt, one.tokens[:-1]))

    def _whole(self, constraint: Constraint, tokens: list[int]) -> str:
        """The answer, with a last token that the processor was not shown, since none came after it."""
        spelled = (constraint.maker.bytes_of(token) for token in tokens if token not in self.stop)
        return b"".join(spelled).decode("utf-8", "replace")


def sampler(request: Request) -> Sampler:
    """Draws by the request's own random numbers, whatever else is drawn."""
    if request.temperature == 0:
        return likeliest
    key = mx.random.key(int(bytes_hash(str(request.seed), request.key)[:16], 16))

    def draw(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.categorical(logprobs.astype(mx.float32) / request.temperature, key=now)

    return draw


def likeliest(logprobs: mx.array) -> mx.array:
    """The token of the highest probability."""
    return mx.argmax(logprobs, axis=-1)


def _open(name: str) -> tuple[Any, Any]:
    from mlxforge.models.load import load
    from mlxforge.models.template import load_template

    loaded = load(name)
    return loaded, load_template(loaded.path, loaded.detected)
