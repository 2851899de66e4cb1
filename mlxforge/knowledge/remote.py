"""The provider ``openai``: a server that speaks OpenAI's protocol, asked by several threads, with an account of the cost."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Union

from mlxforge.core.errors import ConfigError, RunFailed
from mlxforge.knowledge.asked import START, CostReached, ProviderSettings, Reply, Request
from mlxforge.knowledge.endpoint import Endpoint, Refused, Unreachable, short
from mlxforge.knowledge.schemas import Schema, from_json, from_tags, problem, shape, tag_instructions

Answers = queue.Queue[tuple[str, Union[Reply, RunFailed]]]
URL = "OPENAI_BASE_URL"
SCHEMA, TAGS = "json_schema", "tags"
# Refusals that the next request would meet too.
USELESS = (401, 402, 403, 404)
GIVE_UP = 3  # requests in a row, each tried several times, before the server counts as gone
TURN = 16  # tokens that a template writes around a message, at most


class RemoteProvider:
    """See :class:`mlxforge.knowledge.providers.Provider`.

    ``mode`` is how answers in a schema are asked for: ``json_schema``, or ``tags`` where the server does not keep to one. The
    first request finds out.

    Raises:
        ConfigError: no URL, nothing answers there, or the server has several models and none is named.
    """

    def __init__(self, settings: ProviderSettings) -> None:
        url = settings.url or os.environ.get(URL, "")
        if not url:
            raise ConfigError("no server", where="--url", fix=f"such as http://127.0.0.1:8080/v1, or set ${URL}")
        self.settings, self.mode = settings, ""
        self.endpoint = Endpoint(url, timeout=settings.timeout, per_minute=settings.rpm)
        self.model = self.endpoint.model(settings.model, flag="--model NAME", start=START)
        self.failures = 0

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """See :class:`Provider`. Requests are begun as others end; where the caller stops, what is under way is left."""
        waiting, held = iter(requests), list[Request]()
        running: dict[str, float] = {}  # key -> the most that it can cost
        answers: Answers = queue.Queue()
        ended: RunFailed | None = None
        while True:
            # The first request alone finds out how to ask.
            most = self.settings.concurrency if self.mode else 1
            while ended is None and len(running) < most:
                request = held.pop() if held else next(waiting, None)
                if request is None:
                    break
                bound = self._bound(request)
                if not self.settings.purse.take(bound):
                    held.append(request)
                    ended = None if running else self._reached(bound)
                    break
                running[request.key] = bound
                # Not a pool: the interpreter would wait at its end for threads that wait for a server.
                threading.Thread(target=self._work, args=(request, answers), daemon=True).start()
            if not running:
                break
            key, answer = answers.get()
            self.settings.purse.settle(running.pop(key), 0.0 if isinstance(answer, RunFailed) else answer.cost)
            if isinstance(answer, RunFailed):
                ended = ended or answer
            else:
                yield answer
        if ended:
            raise ended

    def _reached(self, bound: float) -> CostReached:
        purse = self.settings.purse
        what = f"the next call can cost ${bound:.4f}, and of ${purse.most:g} ${purse.spent:.4f} is spent"
        return CostReached(what, where="--max-cost", fix="the same command with a larger one goes on")

    def _bound(self, request: Request) -> float:
        """The most that a request can cost: no token is shorter than a byte, and it may be asked in both ways."""
        asked = sum(len(turn["content"].encode()) + TURN for turn in request.messages)
        if request.schema is not None:
            asked += len(json.dumps(request.schema)) + len(tag_instructions(request.schema).encode())
        probing = 1 if self.mode or request.schema is None else 2
        return probing * self.settings.cost(asked, request.max_tokens)

    def _work(self, request: Request, answers: Answers) -> None:
        try:
            answer: Reply | RunFailed = self._answer(request)
            self.failures = 0
        except Unreachable as error:
            self.failures += 1
            answer = error if self.failures >= GIVE_UP else Reply(request.key, error=str(error), later=True)
        except Refused as refused:
            told = RunFailed(refused.told, where=self.endpoint.url)
            answer = told if refused.status in USELESS else Reply(request.key, error=str(told))
        except Exception as error:  # or the caller would wait for ever
            answer = RunFailed(f"{type(error).__name__}: {error}", where=self.endpoint.url)
        answers.put((request.key, answer))

    def _answer(self, request: Request) -> Reply:
        if request.schema is None:
            return self._asked(request, request.messages)
        spent = Reply(request.key)
        if self.mode != TAGS:
            try:
                reply = self._asked(request, request.messages, response_format=_format(request.schema))
            except Refused as refused:
                if self.mode or refused.status in USELESS:
                    raise
            else:
                fits = not reply.error and not problem(from_json(reply.text), shape(request.schema))
                if fits or self.mode:
                    self.mode = SCHEMA
                    return replace(reply, text=_json(from_json(reply.text), reply.text))
                spent = reply
            self.mode = TAGS
        reply = self._asked(request, _tagged(request.messages, request.schema))
        value = from_json(reply.text) or from_tags(reply.text, request.schema)
        return replace(
            reply,
            text=_json(value, reply.text),
            prompt_tokens=reply.prompt_tokens + spent.prompt_tokens,
            completion_tokens=reply.completion_tokens + spent.completion_tokens,
            cost=reply.cost + spent.cost,
        )

    def _asked(self, request: Request, messages: Sequence[Mapping[str, str]], **options: Any) -> Reply:
        """One call. Where the server tells no usage, the most that it can be counts."""
        reply = self.endpoint.chat(
            self.model,
            [dict(turn) for turn in messages],
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            seed=request.seed,
            **options,
        )
        try:
            choice = reply["choices"][0]
            text = choice["message"].get("content") or ""
            refusal = choice["message"].get("refusal")
        except (LookupError, TypeError, AttributeError):
            raise Refused(200, f"not a reply of OpenAI's protocol: {short(json.dumps(reply))}") from None
        usage = reply.get("usage") or {}
        prompt = int(usage.get("prompt_tokens") or sum(len(turn["content"].encode()) + TURN for turn in messages))
        completion = int(usage.get("completion_tokens") or len(str(text).encode()))
        cut = choice.get("finish_reason") == "length" and (request.schema is None or from_json(str(text)) is None)
        error = f"the model refuses: {short(str(refusal))}" if refusal else ""
        error = f"cut off at {request.max_tokens} tokens" if cut else error
        return Reply(request.key, str(text).strip(), error, prompt, completion, self.settings.cost(prompt, completion))


def _format(schema: Schema) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": shape(schema)}}


def _tagged(messages: Sequence[Mapping[str, str]], schema: Schema) -> list[dict[str, str]]:
    """The same conversation, whose last turn ends with how to write the answer."""
    *before, last = (dict(turn) for turn in messages)
    return [*before, {**last, "content": f"{last['content']}\n\n{tag_instructions(schema)}"}]


def _json(value: Any, otherwise: str) -> str:
    return otherwise if value is None else json.dumps(value, ensure_ascii=False)
