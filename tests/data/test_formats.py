"""Formats: what each row becomes, by hand; what is written is read back as it was; no value makes a reader crash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mlxforge.core.rows import Chat, Kto, Message, Preference, Reward, Text, ToolCall
from mlxforge.data.formats import FORMATS, BadRow, Detector
from mlxforge.data.formats.turns import ROLES

SYSTEM = Message("system", "Be brief.")
ASK, ANSWER = Message("user", "Two and two?"), Message("assistant", "Four.")
AGAIN, LAST = Message("user", "And one?"), Message("assistant", "Five.")
WORSE = Message("assistant", "Nine.")
CALL = Message("assistant", "", tool_calls=(ToolCall("add", {"a": 2}),))
RESULT = Message("tool", "4")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
U = {"role": "user", "content": "Two and two?"}
A = {"role": "assistant", "content": "Four."}
ONE, FIVE = {"role": "user", "content": "And one?"}, {"role": "assistant", "content": "Five."}
NINE = {"role": "assistant", "content": "Nine."}
HUMAN, GPT = {"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}
PARTS = [{"type": "text", "text": "Two and "}, {"type": "text", "text": "two?"}]
ADD = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'}
TRANSCRIPT = "\n\nHuman: Two and two?\n\nAssistant: Four.\n\nHuman: And one?\n\nAssistant: "
TREE = {
    "message_tree_id": "1",
    "prompt": {
        "text": "Two and two?",
        "role": "prompter",
        "replies": [
            {"text": "Nine.", "role": "assistant", "rank": 1, "replies": []},
            {
                "text": "Four.",
                "role": "assistant",
                "rank": 0,
                "replies": [
                    {
                        "text": "And one?",
                        "role": "prompter",
                        "replies": [
                            {"text": "Five.", "role": "assistant", "rank": None, "replies": []},
                            {"text": "Gone.", "role": "assistant", "rank": 0, "deleted": True, "replies": []},
                        ],
                    }
                ],
            },
        ],
    },
}


def read(values: dict[str, Any], kind: str | None = None) -> Any:
    """The format's name and the rows of one record."""
    row = Detector()(values)
    found = row.also.get(kind or "", row.read)(values)
    return row.name, found


def calling(**call: Any) -> list[dict[str, Any]]:
    return [U, {"role": "assistant", "content": None, **call}, {"role": "tool", "content": "4"}, A]


def openai(arguments: Any) -> list[dict[str, Any]]:
    return calling(tool_calls=[{"id": "", "type": "function", "function": {"name": "add", "arguments": arguments}}])


PLAIN = Chat((ASK, ANSWER))
LONG = Chat((ASK, ANSWER, AGAIN, LAST))
TOLD = Chat((SYSTEM, ASK, ANSWER))
TOOLED = Chat((ASK, CALL, RESULT, ANSWER))
THOUGHT = Chat((ASK, Message("assistant", "Four.", "2 + 2")))

CHATS: list[tuple[str, dict[str, Any], Chat]] = [
    ("messages", {"messages": [U, A]}, PLAIN),
    ("messages", {"messages": [{"role": "developer", "content": "Be brief."}, U, A]}, TOLD),
    ("messages", {"messages": [U, A], "system": "Be brief."}, TOLD),
    ("messages", {"messages": [{"role": "User", "content": "Two and two?"}, {"role": "model", "content": "Four."}]}, PLAIN),
    ("messages", {"messages": [{**U, "content": PARTS}, A]}, PLAIN),
    ("messages", {"messages": [U, {**A, "weight": 1, "name": None, "tool_calls": None}]}, PLAIN),
    ("messages", {"messages": [U, {**A, "weight": 0}, ONE, {**FIVE, "train": True}]},
     Chat((ASK, Message("assistant", "Four.", train=False), AGAIN, LAST))),
    ("messages", {"messages": openai('{"a": 2}')}, TOOLED),
    ("messages", {"messages": openai({"a": 2})}, TOOLED),
    ("messages", {"messages": calling(tool_calls=[{"name": "add", "arguments": {"a": 2}}])}, TOOLED),
    ("messages", {"messages": calling(tool_calls='[{"name": "add", "arguments": {"a": 2}}]')}, TOOLED),
    ("messages", {"messages": calling(function_call={"name": "add", "arguments": '{"a": 2}'})}, TOOLED),
    ("messages", {"messages": [*openai({"a": 2})[:2], {"role": "function", "content": "4"}, A]}, TOOLED),
    ("messages", {"messages": [U, A], "tools": [TOOL]}, Chat((ASK, ANSWER), (TOOL,))),
    ("messages", {"messages": [U, A], "tools": json.dumps([TOOL["function"]])}, Chat((ASK, ANSWER), (TOOL,))),
    ("messages", {"messages": [U, A], "functions": [TOOL["function"]]}, Chat((ASK, ANSWER), (TOOL,))),
    ("messages", {"messages": [U, {**A, "reasoning_content": "2 + 2"}]}, THOUGHT),
    ("messages", {"messages": [U, {**A, "thinking": "2 + 2"}]}, THOUGHT),
    ("messages", {"messages": [U, {**A, "content": "<think>\n2 + 2\n</think>\n\nFour."}]}, THOUGHT),
    ("messages", {"messages": [{**U, "content": "<think>a</think>"}, A]}, Chat((Message("user", "<think>a</think>"), ANSWER))),
    ("messages", {"messages": [U, {**A, "reasoning_content": " \n"}]}, PLAIN),
    ("messages", {"messages": [U, {**A, "content": "<think>\n \n</think>\n\nFour."}]}, PLAIN),
    ("messages", {"messages": json.dumps([U, A])}, PLAIN),
    ("sharegpt", {"conversations": [HUMAN, GPT]}, PLAIN),
    ("sharegpt", {"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT]}, TOLD),
    ("sharegpt", {"conversations": [HUMAN, GPT], "system": "Be brief.", "tools": ""}, TOLD),
    ("sharegpt", {"conversations": [HUMAN, ADD, {"from": "observation", "value": "4"}, GPT]}, TOOLED),
    ("sharegpt", {"conversations": [U, {"from": "chatgpt", "value": "Four."}]}, PLAIN),
    ("alpaca", {"instruction": "Two and two?", "input": "", "output": "Four."}, PLAIN),
    ("alpaca", {"instruction": "Two and", "input": "two?", "output": "Four."},
     Chat((Message("user", "Two and\n\ntwo?"), ANSWER))),
    ("alpaca", {"instruction": "And one?", "output": "Five.", "history": [["Two and two?", "Four."]]}, LONG),
    ("alpaca", {"instruction": "Two and two?", "input": None, "output": "Four.", "system": "Be brief."}, TOLD),
    ("prompt-completion", {"prompt": "Two and two?", "completion": "Four."}, PLAIN),
    ("prompt-completion", {"prompt": [U, A, ONE], "completion": [FIVE]},
     Chat((ASK, Message("assistant", "Four.", train=False), AGAIN, LAST))),
    ("openorca", {"system_prompt": "Be brief.", "question": "Two and two?", "response": "Four.", "id": "x"}, TOLD),
    ("openorca", {"system_prompt": "", "question": "Two and two?", "response": "Four."}, PLAIN),
    ("dolly", {"instruction": "Two and two?", "context": "", "response": "Four.", "category": "qa"}, PLAIN),
    ("dolly", {"instruction": "Two and two?", "context": "Sums.", "response": "Four."},
     Chat((Message("user", "Two and two?\n\nSums."), ANSWER))),
    ("commands", {"instruction": "On", "context": {"lamp": "off"}, "output": '{"do": "on"}'},
     Chat((Message("user", 'On\n\n{"lamp":"off"}'), Message("assistant", '{"do": "on"}')))),
    ("commands", {"instruction": "On", "context": None, "output": {"do": "on"}},
     Chat((Message("user", "On"), Message("assistant", '{"do":"on"}')))),
    ("oasst-tree", TREE, LONG),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "row"), CHATS)
def test_a_row_becomes_a_chat(name: str, values: dict[str, Any], row: Chat) -> None:
    assert read(values) == (name, row)


PAIR = Preference((ASK,), (ANSWER,), (WORSE,))
LATER = Preference((ASK, ANSWER, AGAIN), (LAST,), (WORSE,))
SAME = [U, A, ONE]
PAIRS: list[tuple[str, dict[str, Any], Any]] = [
    ("preference", {"prompt": "Two and two?", "chosen": "Four.", "rejected": "Nine."}, PAIR),
    ("preference", {"prompt": [U], "chosen": [A], "rejected": [NINE]}, PAIR),
    ("preference", {"chosen": [U, A], "rejected": [U, NINE]}, PAIR),
    ("preference", {"prompt": "Two and two?", "chosen": [U, A], "rejected": [U, NINE]}, PAIR),
    ("preference", {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "Nine."}}, PAIR),
    ("preference", {"instruction": "Two and two?", "input": "", "chosen": "Four.", "rejected": "Nine."}, PAIR),
    ("preference", {"system": "Be brief.", "question": "Two and two?", "chosen": "Four.", "rejected": "Nine."},
     Preference((SYSTEM, ASK), (ANSWER,), (WORSE,))),
    ("preference", {"chosen": TRANSCRIPT + "Five.", "rejected": TRANSCRIPT + "Nine."}, LATER),
    ("preference", {"prompt": TRANSCRIPT, "chosen": "Five.", "rejected": "Nine."}, LATER),
    ("preference", {"chosen": [U, A], "rejected": [*SAME, NINE]},
     Preference((ASK,), (ANSWER,), (ANSWER, AGAIN, WORSE))),
    ("kto", {"prompt": "Two and two?", "completion": "Four.", "label": True}, Kto((ASK,), (ANSWER,), True)),
    ("kto", {"prompt": [U], "completion": [A], "label": "False"}, Kto((ASK,), (ANSWER,), False)),
    ("kto-tag", {"messages": [U, A], "kto_tag": False}, Kto((ASK,), (ANSWER,), False)),
    ("kto-tag", {"instruction": "Two and two?", "input": "", "output": "Four.", "kto_tag": True}, Kto((ASK,), (ANSWER,), True)),
    ("reward", {"prompt": "Two and two?", "response": "Four.", "reward": 3}, Reward((ASK,), (ANSWER,), 3.0)),
    ("text", {"text": " as it is\n"}, Text(" as it is\n")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "row"), PAIRS)
def test_a_row_becomes_what_it_judges(name: str, values: dict[str, Any], row: Any) -> None:
    assert read(values) == (name, row)


def test_the_ranks_of_a_tree_are_pairs() -> None:
    assert read(TREE, "preference") == ("oasst-tree", [PAIR])


def test_every_instance_of_an_instruction_is_a_chat() -> None:
    row = {
        "instruction": "Add.",
        "instances": [{"instruction_with_input": "Add 2 and 2", "input": "2, 2", "constraints": "None.", "output": "4"}],
        "reformulations": [{"instruction": "Sum up", "instruction_with_input": "", "input": "2, 2", "output": "4"}],
    }
    asked = [chat.messages[0].content for chat in read(row)[1]]
    assert asked == ["Add 2 and 2", "Sum up\n\n2, 2"]


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


ONLY = {"role": "user", "content": "q"}
BAD: list[tuple[dict[str, Any], str]] = [
    (turns("assistant", "user", "assistant"), "roles out of order: the first turn is of assistant"),
    (turns("user", "user", "assistant"), "roles out of order: turn 2 is of user after user"),
    (turns("user", "assistant", "assistant"), "roles out of order: turn 3 is of assistant after assistant"),
    (turns("user", "system", "assistant"), "turn 2 is of system, which only comes first"),
    (turns("user", "assistant", "tool", "assistant"), "turn 3 is a tool's answer, but the assistant called none"),
    (turns("user"), "no assistant turn"),
    (turns("user", "assistant", "user"), "the last turn is of user"),
    ({"messages": []}, "no turns"),
    ({"messages": {"role": "user"}}, "'messages' is an object, not a list"),
    ({"messages": "hello"}, "'messages' is text, not a list"),
    ({"messages": ["hello"]}, "turn 1 is text, not an object"),
    ({"messages": [{"content": "x"}]}, "turn 1 has no role"),
    ({"messages": [{"role": 5, "content": "x"}]}, "the role is a number"),
    (turns("user", "asistant"), "unknown role 'asistant'"),
    ({"messages": [ONLY, {"role": "assistant", "content": 4}]}, "turn 2 (assistant): the content is a number, not text"),
    ({"messages": [ONLY, {"role": "assistant", "content": " \n"}]}, "turn 2 (assistant) is empty"),
    ({"messages": [ONLY, {"role": "assistant", "content": None}]}, "turn 2 (assistant) is empty"),
    ({"messages": [{"role": "user", "content": None}, A]}, "turn 1 (user) has no content"),
    ({"messages": [{"role": "user", "content": ""}, A]}, "turn 1 (user) is empty"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]}, "a content part of type 'image_url' is not text"),
    ({"messages": [ONLY, {**A, "weight": 0}]}, "every assistant turn has weight 0"),
    ({"messages": [ONLY, {**A, "weight": 0.5}]}, "'weight' is 0.5"),
    ({"messages": openai("{")}, "the arguments are no JSON"),
    ({"messages": openai("[1]")}, "the arguments are a list, not an object"),
    ({"messages": calling(tool_calls=["add"])}, "tool call 1 is no JSON object"),
    ({"messages": calling(tool_calls=[{"name": ""}])}, "tool call 1 has no function name"),
    ({"messages": [{**ONLY, "tool_calls": [{"name": "f"}]}, A]}, "turn 1 (user) has tool calls"),
    ({"messages": [U, A], "tools": ["add"]}, "tool 1 is text, not an object"),
    ({"messages": [{"role": "system", "content": "s"}, U, A], "system": "s"}, "a system prompt in 'system' and another"),
    ({"conversations": [HUMAN, {"from": "function_call", "value": "add(2)"}]}, "tool call 1 is no JSON object"),
    ({"instruction": "", "output": "x"}, "'instruction' is empty"),
    ({"instruction": "x", "output": ["y"]}, "'output' is a list, not text"),
    ({"instruction": "x", "output": "y", "history": [["a"]]}, "'history' 1 is no pair of texts"),
    ({"instruction": "x", "context": {}, "output": "turn it on"}, "'output' is no JSON object"),
    ({"instruction": "x", "instances": []}, "'instances' is empty"),
    ({"prompt": " ", "completion": "y"}, "'prompt' is empty"),
    ({"prompt": [], "completion": "y"}, "the prompt is empty"),
    ({"prompt": [U, A], "completion": "y"}, "the prompt ends with a turn of assistant"),
    ({"prompt": "p", "chosen": "same", "rejected": "same"}, "chosen and rejected are the same"),
    ({"chosen": "a", "rejected": "b"}, "no 'prompt'"),
    ({"prompt": "p", "chosen": [], "rejected": "b"}, "'chosen' is empty"),
    ({"chosen": [U, A], "rejected": "b"}, "a whole conversation, the other an answer"),
    ({"chosen": [U, A], "rejected": [ONLY, A]}, "do not answer the same prompt"),
    ({"chosen": [U, A, ONLY, A], "rejected": [U, A, U, A]}, "do not answer the same prompt"),
    ({"prompt": "p", "completion": "c", "label": 1}, "'label' is a number, not true or false"),
    ({"kto_tag": True, "id": 1}, "no conversation beside 'kto_tag'"),
    ({"prompt": "p", "response": "r", "reward": "good"}, "'reward' is not a finite number"),
    ({"prompt": "p", "response": "r", "reward": float("inf")}, "'reward' is not a finite number"),
    ({"prompt": "p", "response": "r", "reward": True}, "'reward' is not a finite number"),
    ({"text": 5}, "'text' is a number, not text"),
    ({"message_id": "1", "role": "admin", "text": "x"}, "unknown role 'admin'"),
    ({"message_id": "1", "role": "prompter", "text": "x", "rank": "best"}, "not a number"),
    ({"messages": None, "id": 7}, "'messages' is null"),
    ({"instruction": "i", "output": None}, "'output' is null"),
    ({"prompt": "p", "response": "r", "reward": None}, "'reward' is null"),
    ({"messages": [U, {"role": "assistant", "content": "", "reasoning_content": "2 + 2"}]}, "turn 2 (assistant) is empty"),
    ({"foo": "bar"}, "no format has these keys: foo"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_row_has_a_reason_and_a_fix(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(values)
    assert reason in caught.value.reason
    assert caught.value.fix


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"question": "q", "answer": "a"}, "--map prompt=question --map completion=answer"),
        ({"query": "q", "response": "a"}, "--map prompt=query --map completion=response"),
        ({"input": "q", "output": "a"}, "--map prompt=input --map completion=output"),
        ({"prompt": "q", "response": "a"}, "--map completion=response"),
        ({"dialog": [{"from": "human", "value": "x"}]}, "--map conversations=dialog"),
        ({"mesages": 5}, "'mesages'? did you mean 'messages'?"),
        ({"body": "long text", "id": "7"}, "--map text=body"),
    ],
)
def test_a_row_that_no_format_fits_gets_a_way_out(values: dict[str, Any], fix: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(values)
    assert fix in caught.value.fix


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=8)
SAID = WORDS.filter(lambda text: not text.isspace())
THOUGHTS = st.just("") | SAID.map(lambda text: text.strip("\n")).filter(bool)


@st.composite
def chats(
    draw: Any, *, system: bool = True, many: bool = True, tools: bool = True, weights: bool = True, ids: bool = True
) -> Chat:
    """Conversations of the parts that a format can hold."""
    messages = [Message("system", draw(SAID))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3)) if many else 1):
        messages.append(Message("user", draw(SAID)))
        if tools and draw(st.booleans()):
            arguments = draw(
                st.dictionaries(WORDS, st.integers() | WORDS | st.none() | st.lists(WORDS, max_size=2), max_size=2)
            )
            call = ToolCall(draw(SAID), arguments, draw(WORDS) if ids else "")
            messages.append(Message("assistant", draw(st.just("") | SAID), tool_calls=(call,)))
            messages.append(Message("tool", draw(WORDS), tool_call_id=call.id if ids else ""))
        thoughts = draw(THOUGHTS)
        # What follows thoughts is read without the empty lines between them.
        said = draw(SAID.map(lambda text: text.lstrip("\n")).filter(bool) if thoughts else SAID)
        messages.append(Message("assistant", said, thoughts, train=not weights or draw(st.booleans())))
    assume(any(message.train for message in messages if message.role == "assistant"))
    return Chat(tuple(messages), (TOOL,) if tools and draw(st.booleans()) else ())


HOLDS = {
    "messages": chats(),
    "sharegpt": chats(ids=False),
    "alpaca": chats(tools=False, weights=False),
    "openorca": chats(tools=False, weights=False, many=False),
    "dolly": chats(tools=False, weights=False, many=False, system=False),
    "prompt-completion": chats(many=False, weights=False, tools=False),
}


@pytest.mark.parametrize("name", HOLDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_written_is_detected_and_read_back(name: str, data: st.DataObject) -> None:
    row = data.draw(HOLDS[name])
    write = FORMATS[name].write
    assert write is not None
    values = json.loads(json.dumps(write(row)))
    assert read(values) == (name, row)


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if FORMATS[name].write and FORMATS[name].kind not in ("chat", "text")]
)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(chat=chats(), other=SAID, number=st.floats(allow_nan=False, allow_infinity=False))
def test_judged_rows_are_written_and_read_back(name: str, chat: Chat, other: str, number: float) -> None:
    prompt, completion = chat.messages[:-1], chat.messages[-1:]
    assume(completion[0].train and completion[0].content != other)
    rows = {
        "preference": Preference(prompt, completion, (Message("assistant", other),), chat.tools),
        "kto": Kto(prompt, completion, number > 0, chat.tools),
        "reward": Reward(prompt, completion, number, chat.tools),
    }
    write = FORMATS[name].write
    assert write is not None
    assert read(json.loads(json.dumps(write(rows[name])))) == (name, rows[name])


LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3) | st.sampled_from(
    [*ROLES, "[]", '{"name": "f"}', "<think>a</think>b", TRANSCRIPT, "a\nb"]
)  # fmt: skip
TURN_KEYS = st.sampled_from(
    "role content from value tool_calls name weight thinking function arguments type text rank replies deleted".split()
)
VALUES = st.recursive(
    LEAVES, lambda part: st.lists(part, max_size=3) | st.dictionaries(TURN_KEYS, part, max_size=4), max_leaves=8
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_is_read_or_refused_on_one_line(name: str, data: st.DataObject) -> None:
    row = FORMATS[name]
    optional = {key: VALUES for key in row.keys if key not in row.needs}
    values = data.draw(st.fixed_dictionaries(dict.fromkeys(row.needs, VALUES), optional=optional))
    assume(all(values[key] is not None for key in row.needs) and (row.fits is None or row.fits(values)))
    for reader in (row.read, *row.also.values()):
        refused = ""
        try:
            reader(values)
        except BadRow as bad:
            refused = f"{bad.reason} {bad.fix}"
        assert "\n" not in refused


def test_keys_named_in_the_table_are_the_keys_that_are_needed() -> None:
    assert all(set(row.needs) <= set(row.keys) for row in FORMATS.values())


def test_a_missing_key_is_named():
    with pytest.raises(BadRow) as told:
        Detector()({"prompt": "x", "chosen": "y"})
    assert "'rejected' (preference)" in told.value.fix
    with pytest.raises(BadRow) as told:
        Detector()({"instruction": "x"})
    assert "'output' (" in told.value.fix
    assert "'response' (dolly)" in told.value.fix


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("commands", {"instruction": "Light", "context": "in the hall", "output": '{"on": true}'}, "in the hall"),
        ("commands", {"instruction": "Light", "context": 5, "output": "{}"}, "'context' is a number, not text"),
        ("commands", {"instruction": "Light", "input": "hall", "output": "{}"}, "'input' is no key of commands"),
        ("oasst-tree", {"prompt": "Hello"}, "'prompt' is not the root message of a tree"),
    ],
)
def test_a_format_that_was_asked_for_is_read_or_says_why_not(name: str, row: dict[str, Any], said: str) -> None:
    """No guess at the values is made where none is needed."""
    chosen = Detector(name)(row)
    try:
        text = str(chosen.read(row))
    except BadRow as bad:
        text = bad.reason
    assert said in text
