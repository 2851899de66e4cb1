"""Rows that hold an instruction and its answer under keys of their own."""

from __future__ import annotations

from typing import Any

import msgspec

from mlxforge.core.rows import AnyRow, Chat, Message, Messages, Text
from mlxforge.data.formats.base import BadRow, Values, from_json, list_at, text_at
from mlxforge.data.formats.conversations import single
from mlxforge.data.formats.turns import (
    chat,
    check_prompt,
    join_thoughts,
    split_thoughts,
    tools_of,
    turns,
    with_system,
    written,
)
from mlxforge.data.readers import type_of


def answer(text: str) -> Message:
    """An assistant's turn; thoughts at its start become reasoning."""
    reasoning, content = split_thoughts(text)
    return Message("assistant", content, reasoning)


def asked(*parts: str) -> Message:
    """A user's turn of several parts, an empty line between them."""
    return Message("user", "\n\n".join(part for part in parts if part and not part.isspace()))


def read_text(values: Values) -> Text:
    """Raw text, kept as it is."""
    value = values["text"]
    if not isinstance(value, str):
        raise BadRow(f"'text' is {type_of(value)}, not text", "write it as text, in quotes")
    return Text(value)


def write_text(row: Text) -> Values:
    """Raw text."""
    return {"text": row.text}


def read_alpaca(values: Values) -> Chat:
    """``instruction``, ``input`` (often empty), ``output``, and earlier turns as ``history: [[question, answer], …]``."""
    question = asked(text_at(values, "instruction", required=True), text_at(values, "input"), text_at(values, "context"))
    earlier = [turn for number, pair in enumerate(list_at(values, "history"), 1) for turn in _pair(pair, number)]
    messages = (*earlier, question, answer(text_at(values, "output", required=True)))
    return chat(with_system(text_at(values, "system"), messages))


def _pair(pair: Any, number: int) -> Messages:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise BadRow(f"'history' {number} is no pair of texts", 'such as ["question", "answer"]')
    return Message("user", pair[0]), answer(pair[1])


def write_alpaca(row: Chat) -> Values:
    """All turns but the last pair go into ``history``."""
    messages = row.messages
    system = messages[0].content if messages[0].role == "system" else ""
    rest = messages[1:] if messages[0].role == "system" else messages
    if any(message.role == "tool" or message.tool_calls for message in rest):
        raise BadRow("alpaca has no place for tool calls", "convert to messages or sharegpt")
    pairs = [[ask.content, join_thoughts(reply)] for ask, reply in zip(rest[::2], rest[1::2], strict=True)]
    values: Values = {"instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]}
    return values | ({"system": system} if system else {}) | ({"history": pairs[:-1]} if len(pairs) > 1 else {})


def read_prompt_completion(values: Values) -> Chat:
    """``prompt`` and ``completion``: texts or lists of turns. Only the completion is trained."""
    prompt = as_turns(values, "prompt", "user")
    prompt = with_system(text_at(values, "system"), prompt)
    check_prompt(prompt)
    completion = as_turns(values, "completion", "assistant")
    told = tuple(msgspec.structs.replace(turn, train=False) if turn.role == "assistant" else turn for turn in prompt)
    return chat((*told, *completion), tools_of(values))


def as_turns(values: Values, key: str, role: Any) -> Messages:
    """The turns under ``key``: a list of turns, one turn, or a text, which is a turn of ``role``."""
    value = values.get(key)
    if isinstance(value, dict):
        return turns([value])
    if isinstance(value, list):
        return turns(value)
    text = text_at(values, key, required=True)
    return (answer(text) if role == "assistant" else Message(role, text),)


def write_prompt_completion(row: Chat) -> Values:
    """Texts where they suffice, else lists of turns; the last turn is the completion."""
    plain = [Message(message.role, message.content) for message in row.messages]
    tools = {"tools": row.tools} if row.tools else {}
    if len(plain) == 2 and tuple(plain) == row.messages and not tools and not split_thoughts(plain[1].content)[0]:
        return {"prompt": plain[0].content, "completion": plain[1].content}
    *prompt, completion = (written(message) for message in row.messages)
    for message in prompt:
        message.pop("weight", None)
    return {"prompt": prompt, "completion": [completion], **tools}


def read_openorca(values: Values) -> Chat:
    """``system_prompt``, ``question``, ``response``."""
    question = Message("user", text_at(values, "question", required=True))
    return chat(with_system(text_at(values, "system_prompt"), (question, answer(text_at(values, "response", required=True)))))


def write_openorca(row: Chat) -> Values:
    """One question and its answer."""
    system, question, response = single(row, "openorca")
    return {"system_prompt": system, "question": question, "response": response}


def read_dolly(values: Values) -> Chat:
    """``instruction``, ``context`` (goes behind the instruction), ``response``."""
    question = asked(text_at(values, "instruction", required=True), text_at(values, "context"))
    return chat((question, answer(text_at(values, "response", required=True))))


def write_dolly(row: Chat) -> Values:
    """One question and its answer; a system prompt has no place."""
    _, question, response = single(row, "dolly")
    return {"instruction": question, "context": "", "response": response}


def read_unnatural(values: Values) -> list[AnyRow]:
    """``instruction`` with several ``instances``, and ``reformulations`` of it: a conversation each."""
    found: list[AnyRow] = []
    for key in ("instances", "reformulations"):
        for number, instance in enumerate(list_at(values, key), 1):
            if not isinstance(instance, dict):
                raise BadRow(f"'{key}' {number} is {type_of(instance)}, not an object", "write it as a JSON object")
            found.append(_instance(values | {"input": None} | instance))
    if not found:
        raise BadRow("'instances' is empty", "fill it in or remove the row")
    return found


def _instance(values: Values) -> Chat:
    whole = text_at(values, "instruction_with_input")
    parts = (whole,) if whole else (text_at(values, "instruction", required=True), text_at(values, "input"))
    constraints = text_at(values, "constraints")
    if constraints.strip().rstrip(".").lower() == "none":
        constraints = ""
    return chat((asked(*parts, constraints), answer(text_at(values, "output", required=True))))


def is_command(values: Values) -> bool:
    """Whether ``context`` is there as an object or null: a plain text is alpaca's or dolly's."""
    context = values.get("context")
    if isinstance(context, str):
        context = from_json(context) if context else None
        return isinstance(context, dict)
    return "context" in values and "input" not in values and (context is None or isinstance(context, dict))


def read_command(values: Values) -> Chat:
    """``instruction``, ``context`` (an object or null, goes behind the instruction as JSON), ``output`` (a command in JSON)."""
    context, output = values.get("context"), values["output"]
    if values.get("input"):
        raise BadRow("'input' is no key of commands", "name it context, or read the rows with --format alpaca")
    if isinstance(context, dict):
        context = msgspec.json.encode(context).decode()
    context = text_at({"context": context}, "context")
    if isinstance(output, (dict, list)):
        output = msgspec.json.encode(output).decode()
    text = text_at({"output": output}, "output", required=True)
    if not isinstance(from_json(text), (dict, list)):
        raise BadRow("'output' is no JSON object", "write the command as JSON, or read the rows with --format alpaca")
    return chat((asked(text_at(values, "instruction", required=True), context), Message("assistant", text)))


def write_command(row: Chat) -> Values:
    """One instruction and its command; a system prompt has no place."""
    _, question, output = single(row, "commands")
    if not isinstance(from_json(output), (dict, list)):
        raise BadRow("the answer is no JSON object, as a command is", "convert to alpaca or messages")
    return {"instruction": question, "context": None, "output": output}
