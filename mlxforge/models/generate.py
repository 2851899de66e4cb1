"""Answers to many prompts: greedy ones, which a run shows of itself and a task scores, and several drawn for one prompt."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

TOGETHER = 32  # prompts answered at a time
TRIED = 7  # prompts that tell whether a model can answer several together: no model has seven key heads
AT_ONCE = 2048  # tokens of a prompt read at a time


def answer_greedily(model: nn.Module, prompts: Sequence[Sequence[int]], length: int, stop: Collection[int]) -> list[list[int]]:
    """The most likely continuation of each prompt: at most ``length`` tokens, up to a token of ``stop``, which is left out.

    Prompts of the same length are answered together, so that no padding is needed and any kind of cache serves.
    """
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    answers: list[list[int]] = [[] for _ in prompts]
    for indices in by_length.values():
        for begin in range(0, len(indices), TOGETHER):
            chosen = indices[begin : begin + TOGETHER]
            for index, answer in zip(chosen, _together(model, [prompts[i] for i in chosen], length, stop), strict=True):
                answers[index] = answer
    return answers


class Made(NamedTuple):
    """The greedy answer to the prompt at ``place``, without the token that ended it; ``ended`` false: cut off."""

    place: int
    tokens: list[int]
    ended: bool


def batches(model: nn.Module) -> bool:
    """Whether mlx-lm's batch generator takes a model: prompts of unequal length are tried.

    Some caches cannot be joined, and some models (Gemma 2) cannot apply the mask of padded prompts: they fail unless there are
    as many prompts as key heads, and are wrong then. So as many are tried as no model has.
    """
    from mlx_lm.models.cache import make_prompt_cache

    if not all(hasattr(layer, "merge") for layer in make_prompt_cache(model)):
        return False
    try:
        tried = [list(range(size)) for size in range(2, 2 + TRIED)]
        return len(list(greedy_batches(model, tried, [1] * TRIED, ()))) == TRIED
    except (AttributeError, IndexError, TypeError, ValueError):
        return False


def greedy_batches(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    stop: Collection[int],
    *,
    together: int = TOGETHER,
) -> Iterator[Made]:
    """The answers of :func:`answer_greedily` in the order of their ends, by mlx-lm's batch generator.

    A place is filled again as soon as its answer ends. Prompts of like length are read together, since the shorter ones are
    padded. The model must be one that :func:`batches`.

    Args:
        lengths: tokens of each answer at most.
        together: prompts answered at a time.
    """
    from mlx_lm.generate import BatchGenerator

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    generator = BatchGenerator(
        model, stop_tokens=[[token] for token in stop], completion_batch_size=together, prefill_batch_size=together
    )
    try:
        numbers = generator.insert([list(prompts[i]) for i in order], max_tokens=[lengths[i] for i in order])
        index_of = dict(zip(numbers, order, strict=True))
        made: dict[int, list[int]] = {number: [] for number in numbers}
        while steps := generator.next_generated():
            for step in steps:
                if step.finish_reason != "stop":
                    made[step.uid].append(step.token)
                if step.finish_reason:
                    yield Made(index_of[step.uid], made.pop(step.uid), step.finish_reason == "stop")
    finally:
        generator.close()


def greedy_groups(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    stop: Collection[int],
    *,
    together: int = TOGETHER,
) -> Iterator[Made]:
    """As :func:`greedy_batches`, for any model: prompts of the same length are answered together."""
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), lengths[index]))
    for _, group in groupby(order, key=lambda index: (len(prompts[index]), lengths[index])):
        waiting = iter(group)
        while chosen := list(islice(waiting, together)):
            length = lengths[chosen[0]]
            for index, tokens in zip(chosen, _together(model, [prompts[i] for i in chosen], length, stop), strict=True):
                yield Made(index, tokens, len(tokens) < length)


def _together(model: nn.Module, prompts: Sequence[Sequence[int]], length: int, stop: Collection[int]) -> list[list[int]]:
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    tokens = mx.array([list(prompt) for prompt in prompts])
    made: list[list[int]] = [[] for _ in prompts]
    waiting = set(range(len(prompts)))
    for _ in range(length):
        tokens = mx.argmax(model(tokens, cache=cache)[:, -1], axis=-1, keepdims=True)
        for row, (token,) in enumerate(tokens.tolist()):
            if row in waiting and token in stop:
                waiting.remove(row)
            elif row in waiting:
                made[row].append(token)
        if not waiting:
            break
    return made


class Drawn(NamedTuple):
    """A sampled answer; ``ended`` false: cut off."""

    tokens: list[int]
    ended: bool


def sample_answers(
    model: nn.Module,
    prompt: Sequence[int],
    count: int,
    length: int,
    stop: Collection[int],
    *,
    temperature: float,
    seed: int,
) -> list[Drawn]:
    """``count`` answers to one prompt: at most ``length`` tokens each, up to a token of ``stop``, which is left out.

    The prompt is read once. What is drawn depends on the arguments alone, not on what was drawn before.

    Args:
        temperature: above 0; 1 draws as the model weighs its tokens.
        seed: 64 bits.
    """
    cache = _widened(_read(model, prompt[:-1]), count)
    tokens = mx.array([[prompt[-1]]] * count)
    made: list[list[int]] = [[] for _ in range(count)]
    waiting, key = set(range(count)), mx.random.key(seed)
    for _ in range(length):
        logits = model(tokens, cache=cache)[:, -1].astype(mx.float32)  # (count, vocabulary)
        key, now = mx.random.split(key)
        tokens = mx.random.categorical(logits / temperature, key=now)[:, None]
        for row, (token,) in enumerate(tokens.tolist()):
            if row in waiting and token in stop:
                waiting.remove(row)
            elif row in waiting:
                made[row].append(token)
        if not waiting:
            break
    return [Drawn(tokens, row not in waiting) for row, tokens in enumerate(made)]


def _read(model: nn.Module, tokens: Sequence[int]) -> list[Any]:
    """The cache after some tokens; their logits are never computed."""
    from mlx_lm.models.cache import make_prompt_cache

    cache: list[Any] = make_prompt_cache(model)
    for begin in range(0, len(tokens), AT_ONCE):
        model(mx.array([list(tokens[begin : begin + AT_ONCE])]), cache=cache)
        mx.eval([layer.state for layer in cache])
    return cache


def _widened(cache: list[Any], count: int) -> list[Any]:
    """The cache of one sequence as that of ``count`` equal ones."""
    from mlx.utils import tree_map

    for layer in cache:
        layer.state = tree_map(
            lambda part: mx.repeat(part, count, axis=0) if isinstance(part, mx.array) and part.ndim else part, layer.state
        )
    return cache
