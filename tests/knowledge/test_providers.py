"""Providers: what a local model writes always fits its schema; what a server does wrong is mended, told, or both."""

from __future__ import annotations

import json
import threading
import time

import mlx.core as mx
import pytest
from bad_server import serving_badly

from mlxforge.core.errors import ConfigError, RunFailed
from mlxforge.knowledge import endpoint as endpoints
from mlxforge.knowledge.asked import CostReached, ProviderSettings, Purse, Request
from mlxforge.knowledge.endpoint import Endpoint, Pace, Unreachable
from mlxforge.knowledge.providers import provider
from mlxforge.knowledge.schemas import enough, from_json, from_tags, problem, record, tag_instructions, text_of
from mlxforge.knowledge.styles import STYLES

ONE = STYLES["factual"].schema(1)
LEVEL = {"enum": ["easy", "hard"]}
MANY = record(
    rows={
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": record(
            question=text_of(10, 90),
            level=LEVEL,
            score={"type": "integer", "minimum": 0, "maximum": 10},
            sure={"type": "boolean"},
        ),
    }
)
PROMPT = (
    {"role": "system", "content": "You write questions."},
    {"role": "user", "content": "<passage>\nThe mill of Aldmouth was built in 1830.\n</passage> with 1 in"},
)


@pytest.fixture(scope="module")
def tiny():
    return provider("mlx", ProviderSettings(model="tiny", concurrency=8))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoints, "PAUSE", 0.01)
    with serving_badly() as started:
        yield started


def remote(server, **settings):
    return provider("openai", ProviderSettings(url=server.url, **settings))


def asks(number, schema=ONE, **changes):
    return [Request(f"k{i}", PROMPT, schema, **{"max_tokens": 300, "seed": i, **changes}) for i in range(number)]


def whole(replies, schema):
    found = {reply.key: reply for reply in replies}
    for reply in found.values():
        assert not reply.error
        assert problem(from_json(reply.text), schema) == "", reply.text
    return found


# The tiny model writes for ever: without the ending most of these would be cut off.
@pytest.mark.parametrize(("schema", "seeds", "room"), [(MANY, 10, 170), (MANY, 4, enough(MANY) + 2)])
def test_an_answer_fits_its_schema_within_its_tokens(tiny, schema, seeds, room):
    found = whole(tiny.complete(asks(seeds, schema, max_tokens=room, temperature=1.0)), schema)
    assert len(found) == seeds
    assert all(reply.completion_tokens <= room for reply in found.values())
    assert len({reply.text for reply in found.values()}) > seeds // 2


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_every_style_fits_within_its_tokens(tiny, style, temperature):
    schema = STYLES[style].schema(2)
    room = 2 * STYLES[style].tokens // 3
    found = whole(tiny.complete(asks(20, schema, max_tokens=max(room, enough(schema) + 2), temperature=temperature)), schema)
    assert len(found) == 20


def test_too_few_tokens_are_refused_before_any_is_made(tiny):
    with pytest.raises(ConfigError, match=f"at least {enough(ONE) + 2}"):
        list(tiny.complete(asks(1, max_tokens=enough(ONE) + 1)))


def test_an_answer_depends_on_its_request_alone(tiny):
    requests = asks(3, record(answer=text_of(2, 60)), max_tokens=80)
    forth = {reply.key: reply.text for reply in tiny.complete(requests)}
    assert {reply.key: reply.text for reply in tiny.complete(requests[::-1])} == forth
    assert {reply.key: reply.text for reply in tiny._alone(iter(requests[:1]))} == {"k0": forth["k0"]}


def test_free_text_and_what_does_not_fit_the_context(tiny):
    long = Request("long", ({"role": "user", "content": "mill " * 3000},), None, 10)
    free = Request("free", ({"role": "user", "content": "Hello there"},), None, 60, 0.0)
    cut = Request("cut", ({"role": "user", "content": "Hello there"},), None, 2, 0.0)
    found = {reply.key: reply for reply in tiny.complete([long, free, cut])}
    assert "context is 2048" in found["long"].error
    assert found["free"].text
    assert found["cut"].error == "cut off at 2 tokens"


def test_the_mask_leaves_no_other_token(tiny):
    constraint = tiny._constrainer(record(level=LEVEL), 60)
    logits = mx.zeros((1, 2048))
    tokens = [1]
    while not constraint.done:
        allowed = [i for i, one in enumerate(constraint(mx.array(tokens), logits)[0].tolist()) if one == 0]
        tokens.append(allowed[-1])
    assert constraint.text in ('{"level": "easy"}', '{"level": "hard"}')
    assert {i for i, one in enumerate(constraint(mx.array(tokens), logits)[0].tolist()) if one == 0} == set(tiny.stop)


def test_tags_say_the_same_as_json():
    value = {"rows": [{"question": "What?\nAnd why?", "level": "hard", "score": 7, "sure": True}] * 2}
    rows = "".join(f"<rows>\n{''.join(f'<{k}>{v}</{k}>' for k, v in row.items())}</rows>\n" for row in value["rows"])
    assert from_tags(f"<think><rows>no</rows></think>Well.\n{rows} Done.", MANY) == value
    assert from_tags("nothing", MANY) == {"rows": []}
    assert "<level>easy or hard</level>" in tag_instructions(MANY)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"rows": []}, "rows: 0 items, not 1 to 3"),
        ({"rows": [{"question": "short", "level": "easy", "score": 1, "sure": True}]}, "rows 1.question: 5 characters"),
        ({"rows": [{"question": "long enough", "level": "mild", "score": 1, "sure": True}]}, "none of easy, hard"),
        ({"rows": [{"question": "long enough", "level": "easy", "score": True, "sure": True}]}, "boolean, not integer"),
        ({"rows": [{"question": "long enough", "level": "easy", "score": 11, "sure": 1}]}, "11, not 0 to 10"),
        ({"rows": [{"question": "long enough", "level": "easy", "score": 1}]}, "no key 'sure'"),
        ({"rows": [{"question": "long enough", "level": "easy", "score": 1, "sure": True}], "more": 1}, "unknown key 'more'"),
        ([], "array, not object"),
    ],
)
def test_what_does_not_fit_is_named(value, told):
    assert told in problem(value, MANY)


def test_a_server_with_schemas_and_one_without(server):
    found = whole(remote(server).complete(asks(3)), ONE)
    assert [body["response_format"]["type"] for body, _ in server.seen] == ["json_schema"] * 3
    assert "maxLength" not in json.dumps(server.seen[0][0])
    server.schemas = False
    server.seen.clear()
    asked = remote(server)
    assert whole(asked.complete(asks(3)), ONE).keys() == found.keys()
    # One question finds out; it is not asked so again.
    assert ["response_format" in body for body, _ in server.seen] == [True, False, False, False]
    assert asked.mode == "tags"


@pytest.mark.parametrize("said", ["prose", "broken JSON", "wrong schema"])
def test_a_server_that_takes_a_schema_and_does_not_keep_to_it_is_asked_for_tags(server, said):
    server.plan += [said]
    asked = remote(server)
    assert whole(asked.complete(asks(1)), ONE)["k0"].completion_tokens > 0
    assert (asked.mode, len(server.seen)) == ("tags", 2)


@pytest.mark.parametrize("fault", ["busy", "500", "cut", "hang up", "drip", "html"])
def test_what_may_pass_is_tried_again(server, fault):
    asked = remote(server, timeout=0.4)
    server.plan += [fault, fault]
    begun = time.monotonic()
    whole(asked.complete(asks(1)), ONE)
    assert len(server.seen) == 3
    assert fault != "busy" or time.monotonic() - begun > 0.6  # Retry-After, twice


def test_retry_after_may_be_a_date():
    from email.utils import formatdate

    assert 50 < endpoints._seconds(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert endpoints._seconds("soon") == endpoints._seconds(None) == 0


def test_what_one_request_meets_is_its_own_and_what_all_meet_ends_the_job(server):
    asked = remote(server, concurrency=1)
    whole(asked.complete(asks(1)), ONE)
    server.plan += ["too long", "", "length"]
    found = {reply.key: reply.error for reply in asked.complete(asks(3))}
    assert "the prompt is too long" in found["k0"]
    assert (found["k1"], found["k2"]) == ("", "cut off at 300 tokens")
    server.always = "redirect"
    assert all("302" in reply.error for reply in asked.complete(asks(2)))
    server.always = "500"
    replies = asked.complete(asks(9))
    assert [next(replies).later for _ in range(2)] == [True, True]
    with pytest.raises(Unreachable, match="status 500: boom, tried 4 times"):
        next(replies)


def test_options_that_a_server_refuses_are_left_out_or_renamed(server):
    asked = remote(server)
    server.plan += ["no temperature", "old name"]
    whole(asked.complete(asks(2)), ONE)
    first, *_, last = (body for body, _ in server.seen)
    assert {"temperature", "max_tokens"} <= first.keys()
    assert "temperature" not in last
    assert (last["max_completion_tokens"], "max_tokens" in last) == (300, False)


def test_the_key_is_in_no_message(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    asked = remote(server)
    server.always = "key"
    with pytest.raises(RunFailed, match=r"401: wrong Bearer … .*OPENAI_API_KEY") as caught:
        list(asked.complete(asks(1)))
    assert "sk-secret" not in str(caught.value)
    assert server.seen[0][1]["Authorization"] == "Bearer sk-secret-1"
    monkeypatch.setattr(endpoints, "is_here", lambda host: False)
    assert Endpoint(server.url).withholds_key
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1\nsk-secret-2")
    with pytest.raises(ConfigError, match=r"\$OPENAI_API_KEY: a key has") as told:
        Endpoint(server.url)
    assert "sk-secret" not in str(told.value)


def test_requests_are_made_together_and_no_more_than_allowed(server):
    server.delay = 0.05
    asked = remote(server, concurrency=4)
    whole(asked.complete(asks(12)), ONE)
    assert 2 <= server.most <= 4
    pace, begun = Pace(1200), time.monotonic()  # one in 50 ms
    threads = [threading.Thread(target=pace.wait) for _ in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert time.monotonic() - begun > 0.19


def test_the_ceiling_is_never_exceeded_and_nothing_is_lost_below_it(server):
    purse = Purse(most=0.02)
    asked = remote(server, concurrency=3, price_in=1.0, price_out=10.0, purse=purse)
    costs = []
    replies = (costs.append(reply.cost) for reply in asked.complete(asks(1000)))
    with pytest.raises(CostReached, match=r"of \$0.02 \$0.01\d+ is spent"):
        list(replies)
    assert 0.015 < purse.spent <= 0.02
    assert purse.spent == pytest.approx(sum(costs))
    assert purse.aside == pytest.approx(0)
    assert len(costs) == len(server.seen)  # all that was asked was answered


def test_without_usage_the_most_that_it_can_be_counts(server):
    server.plan += ["prose"]
    (reply,) = remote(server, price_in=1.0, price_out=1.0).complete(asks(1, None))
    text = "Certainly! Here are some questions."
    assert (reply.text, reply.completion_tokens) == (text, len(text))
    assert reply.prompt_tokens > sum(len(turn["content"]) for turn in PROMPT)


def test_what_cannot_be_reached_says_how_to_start_it(server):
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9/v1: no answer: Connection refused \(start it: mlxforge serve"):
        provider("openai", ProviderSettings(url="http://127.0.0.1:9/v1"))
    server.models = ["one", "two"]
    with pytest.raises(ConfigError, match=r"2 models: one, two \(name one: --model NAME\)"):
        remote(server)
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        provider("openai", ProviderSettings())
    with pytest.raises(ConfigError, match="did you mean 'openai'"):
        provider("openia", ProviderSettings())


def test_a_reply_that_is_none_is_told(server):
    server.always = "no choices"
    (reply,) = remote(server).complete(asks(1, None))
    assert "not a reply of OpenAI's protocol" in reply.error
