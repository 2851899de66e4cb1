"""OpenAssistant's trees of messages, whole or as flat rows: the best-ranked path is a chat, siblings' ranks are pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from mlxforge.core.rows import AnyRow, Chat, Message, Preference
from mlxforge.data.formats.base import BadRow, Gathered, Values, text_at
from mlxforge.data.formats.turns import ROLES, chat, check_continuation, check_prompt, turns
from mlxforge.data.readers import type_of


def is_tree(values: Values) -> bool:
    """Whether ``prompt`` is the root message of a tree."""
    return isinstance(values["prompt"], dict) and "text" in values["prompt"]


def _root(values: Values) -> Values:
    if not is_tree(values):
        raise BadRow("'prompt' is not the root message of a tree", "leave --format out to see what fits")
    root: Values = values["prompt"]
    return root


def read_message(values: Values) -> list[AnyRow]:
    """Looks whether a flat row is a message; it becomes a row only together with the others of its tree."""
    text_at(values, "text", required=True)
    for key in ("message_id", "parent_id", "role"):
        text_at(values, key)
    if ROLES.get(values["role"]) not in ("user", "assistant"):
        raise BadRow(f"unknown role '{values['role']}'", "roles: prompter, assistant")
    _rank(values)
    return []


def gather(rows: Gathered, leave: Callable[[str], None]) -> Iterator[tuple[Values, str]]:
    """Trees out of flat messages, in the order of their roots.

    ``leave`` is told, once each, of deleted messages, of replies whose parent is not there, and of trees without an answer.
    """
    kept: dict[Any, tuple[Values, str]] = {}
    for values, origin in rows:
        if values.get("deleted") in (True, "true", "True"):
            leave("deleted messages")
        elif values["message_id"] in kept:
            leave("messages with the id of another")
        else:
            kept[values["message_id"]] = ({**values, "replies": []}, origin)
    roots = []
    for values, origin in kept.values():
        parent = values.get("parent_id") or None
        if parent is None:
            roots.append((values, origin))
        elif parent in kept:
            kept[parent][0]["replies"].append(values)
    for _ in range(len(kept) - sum(_size(values) for values, _ in roots)):
        leave("messages whose parent is not there")
    for values, origin in roots:
        if any(ROLES.get(reply.get("role")) == "assistant" for reply in values["replies"]):
            yield {"prompt": values}, origin
        else:
            leave("trees without an answer")


def _size(root: Values) -> int:
    return sum(1 for _ in _nodes(root))


def _nodes(root: Values) -> Iterator[tuple[Values, tuple[Values, ...]]]:
    """Every message of a tree with the path that leads to it, itself included."""
    stack: list[tuple[Values, tuple[Values, ...]]] = [(root, (root,))]
    while stack:
        node, path = stack.pop()
        yield node, path
        stack.extend((reply, (*path, reply)) for reply in reversed(_replies(node)))


def _replies(node: Values) -> list[Values]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise BadRow("'replies' is no list of messages", "write it as a JSON list of objects")
    return [reply for reply in replies if not reply.get("deleted")]


def _rank(node: Values) -> float:
    """0 is the best; a message without a rank comes after those with one."""
    rank = node.get("rank")
    try:
        return math.inf if rank is None else float(rank)
    except (TypeError, ValueError):
        what = f"text, {rank[:20]!r}," if isinstance(rank, str) else type_of(rank) + ","
        raise BadRow(f"'rank' is {what} not a number", "0 is the best") from None


def _turns(path: tuple[Values, ...] | list[Values]) -> tuple[Message, ...]:
    return turns([{"role": node.get("role"), "content": node.get("text")} for node in path])


def read_chat(values: Values) -> Chat:
    """The path of the best-ranked replies, up to the last answer on it."""
    node: Values | None = _root(values)
    path: list[Values] = []
    while node is not None:
        path.append(node)
        node = min(_replies(node), key=_rank, default=None)
    while len(path) > 1 and ROLES.get(path[-1].get("role", "")) == "user":
        path.pop()
    return chat(_turns(path))


def read_pairs(values: Values) -> list[AnyRow]:
    """At every question with ranked answers: the best against each of the others."""
    found: list[AnyRow] = []
    for node, path in _nodes(_root(values)):
        ranked = sorted((reply for reply in _replies(node) if not math.isinf(_rank(reply))), key=_rank)
        ranked = [reply for reply in ranked if ROLES.get(reply.get("role", "")) == "assistant"]
        for worse in ranked[1:]:
            if _rank(worse) > _rank(ranked[0]) and worse.get("text") != ranked[0].get("text"):
                found.append(_pair(path, ranked[0], worse))
    return found


def _pair(path: tuple[Values, ...], best: Values, worse: Values) -> Preference:
    prompt, chosen, rejected = _turns(path), _turns([best]), _turns([worse])
    check_prompt(prompt)
    check_continuation(chosen, prompt, "the best reply")
    check_continuation(rejected, prompt, "a worse reply")
    return Preference(prompt, chosen, rejected)
