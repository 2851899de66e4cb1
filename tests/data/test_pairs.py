"""The law of pairs: both answers follow the very prompt that inference feeds, and are trained from its end to their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chat_makes import CALL, MAKES, QUESTION, RESULT, SYSTEM, TOOL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxforge.core.errors import DataError
from mlxforge.core.events import Noted, Warned
from mlxforge.core.rows import Kto, Message, Preference
from mlxforge.data.formats import BadRow
from mlxforge.data.masks import ChatEncoder
from mlxforge.data.pairs import PairEncoder, RowOptions, conversation, prepare_answers, prepare_pairs
from mlxforge.data.selftest import self_test
from mlxforge.data.sources import parse_spec
from mlxforge.data.tokens import split_by_hash


def user(text):
    return Message("user", text)


def says(text, **more):
    return Message("assistant", text, **more)


GOOD, BAD = (says("By the river."),), (says("Who knows."),)
ASKED = (SYSTEM, QUESTION)
TALK = (SYSTEM, QUESTION, says("At noon."), user("When?"))
SWITCH = ("deepseek_r1", "deepseek_v31", "qwen3", "qwen3_thinking")  # thoughts have a prompt of their own


def encoder_of(template, max_length=4096, **settings):
    return PairEncoder(template, max_length=max_length, **settings)


def sides(row):
    return ((row.chosen, row.chosen_mask), (row.rejected, row.rejected_mask))


def text_of(template, ids):
    return "".join(template.pieces([int(index) for index in ids]))


def runs(template, row, side):
    """The text of each run of trained tokens of one side, and what stands between them."""
    ids, mask = side
    pieces = template.pieces([*map(int, row.prompt), *map(int, ids)])[len(row.prompt) :]
    trained, rest = [], []
    before = None
    for piece, on in zip(pieces, mask, strict=True):
        texts = trained if on else rest
        if on != before:
            texts.append("")
        texts[-1] += piece
        before = on
    return trained, rest


def plain(name, text):
    """A text but for the spaces that SentencePiece puts after a control token."""
    return " ".join(text.split()) if MAKES[name].sentence_piece else text


def said(name, text):
    return MAKES[name].said.replace("{}", text)


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("prompt", [(QUESTION,), ASKED, TALK])
def test_an_answer_is_what_a_conversation_with_it_would_be(name, prompt, template_of):
    template = template_of(name)
    row = encoder_of(template).pair(Preference(prompt, GOOD, BAD))
    assert list(row.prompt) == template.prompt(prompt)
    for (ids, mask), answer in zip(sides(row), (GOOD, BAD), strict=True):
        (whole,) = ChatEncoder(template, max_length=4096).encode(conversation(prompt, answer))
        assert [*row.prompt, *ids] == whole.ids
        assert [*(0,) * len(row.prompt), *mask] == whole.mask
        assert mask.all()
        assert ids[-1] in template.stop
        assert [plain(name, text) for text in runs(template, row, (ids, mask))[0]] == [
            plain(name, said(name, answer[0].content))
        ]


def test_a_pair_by_hand(template_of):
    template = template_of("chatml")
    row = encoder_of(template).pair(Preference(ASKED, GOOD, (says("Yes?"), user("Sure?"), says("No."))))
    start, end = "<|im_start|>", "<|im_end|>"
    asked = f"{start}system\nBe brief.{end}\n{start}user\nHm?{end}\n{start}assistant\n"
    assert text_of(template, row.prompt) == asked
    assert text_of(template, row.chosen) == f"By the river.{end}"
    assert runs(template, row, sides(row)[1]) == (
        [f"Yes?{end}", f"No.{end}"],
        [f"\n{start}user\nSure?{end}\n{start}assistant\n"],
    )


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("said_first", ["Zebras, I think.", "xw, I think wx"])  # the latter begins and ends as the stand-ins do
def test_of_an_answer_of_several_turns_the_last_is_exact_and_all_are_trained(name, said_first, template_of):
    template, make = template_of(name), MAKES[name]
    encoder = encoder_of(template)
    long = (says(said_first), user("Sure?"), says("Quite sure."))
    row = encoder.pair(Preference(ASKED, long, BAD))
    first, last = template.prompt(ASKED), template.prompt((*ASKED, *long[:-1]))
    assert list(row.prompt) == first[: len(row.prompt)]
    for (ids, mask), prompt in ((sides(row)[0], last), (sides(row)[1], first)):
        whole = [*map(int, row.prompt), *map(int, ids)]
        assert whole[: len(prompt)] == prompt
        assert mask[len(prompt) - len(row.prompt) :].all()
    trained, rest = runs(template, row, sides(row)[0])
    opening, _, end = (part.strip() for part in make.said.partition("{}"))
    contents = [plain(name, text).strip().removeprefix(opening).removesuffix(end).strip() for text in trained]
    # Alpaca's history ends an answer with line ends alone, and they are one token with the full stop.
    assert contents == [said_first.rstrip("." if name == "alpaca" else ""), "Quite sure."]
    assert "Sure?" in rest[-1]
    (lower,) = runs(template, row, sides(row)[1])[0]
    assert plain(name, lower) == plain(name, said(name, "Who knows."))
    apart = make.apart or name in ("mistral_v3", "mistral_nemo")
    assert encoder.counts["history"] == apart
    assert list(row.prompt) == first or apart


@pytest.mark.parametrize("name", [name for name, make in MAKES.items() if make.called])
def test_calls_are_trained_and_their_results_are_not(name, template_of):
    template = template_of(name)
    row = encoder_of(template).pair(Preference((QUESTION,), (CALL, RESULT, *GOOD), BAD, (TOOL,)))
    trained, rest = runs(template, row, sides(row)[0])
    assert [plain(name, text) for text in trained] == [
        plain(name, MAKES[name].called),
        plain(name, said(name, "By the river.")),
    ]
    assert "4" in "".join(rest)
    last = template.prompt((QUESTION, CALL, RESULT), (TOOL,))
    assert [*row.prompt, *row.chosen][: len(last)] == last


texts = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=20)
words = st.lists(
    st.sampled_from(["\n", " ", "\n\n", "The", " river", "12345", "'s", "é", "日本", "👩‍🚀", "<", "</", "a b"]), max_size=8
)
contents = st.lists(st.one_of(texts, words.map("".join)).filter(str.strip), min_size=4, max_size=4)


@pytest.mark.parametrize("name", ["chatml", "glm4", "llama2", "llama3", "mistral_v3", "phi3", "qwen3", "zephyr"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(contents=contents)
def test_any_texts(name, contents, template_of):
    """Whatever the answers begin with, the prompt's tokens are those of inference; whatever they hold, it is trained."""
    template = template_of(name)
    asked, one, more, other = contents
    prompt = (user(asked),)
    row = Preference(prompt, (says(one),), (says(other), user(asked), says(more)))
    pair = encoder_of(template).pair(row)
    fed = template.prompt(prompt)
    assert list(pair.prompt) == fed[: len(pair.prompt)]
    whole = [*pair.prompt, *pair.chosen]
    (expected,) = ChatEncoder(template, max_length=10**6).encode(conversation(prompt, row.chosen))
    assert (whole, [*[0] * len(pair.prompt), *pair.chosen_mask]) == (expected.ids, expected.mask)
    last = template.prompt((*prompt, *row.rejected[:-1]))
    seen = [*pair.prompt, *pair.rejected][: len(last)]
    # The last turn is exact too, but where its own prompt melts the first answer into the prompt that both share.
    assert seen == last or last[: len(pair.prompt)] != list(pair.prompt)
    assert plain(name, runs(template, pair, sides(pair)[1])[0][-1]).find(plain(name, template.decoded(more).strip())) >= 0
    answer = encoder_of(template).answer(Kto(prompt, row.chosen, False))
    assert [*answer.prompt, *answer.answer] == expected.ids
    assert list(answer.prompt) == fed


# Thoughts -----------------------------------------------------------------------------------------------------------------

THOUGHT = (says("Four.", reasoning="Two and two."),)


@pytest.mark.parametrize("name", MAKES)
def test_thoughts_of_both_answers_follow_the_prompt_for_thoughts(name, template_of):
    template = template_of(name)
    row = encoder_of(template).pair(Preference(ASKED, THOUGHT, (says("Five.", reasoning="Two and three."),)))
    assert list(row.prompt) == template.prompt(ASKED, thinking=True)
    for side, thought, content in zip(sides(row), ("Two and two.", "Two and three."), ("Four.", "Five."), strict=True):
        (text,) = runs(template, row, side)[0]
        assert text.index(thought) < text.index(content)


@pytest.mark.parametrize("name", [name for name in MAKES if name != "deepseek_v31"])
def test_where_one_side_has_thoughts_the_other_says_that_it_has_none(name, template_of):
    template = template_of(name)
    row = encoder_of(template).pair(Preference(ASKED, THOUGHT, BAD))
    assert list(row.prompt) == template.prompt(ASKED, thinking=True)
    assert [*row.prompt, *row.chosen] == ChatEncoder(template).encode(conversation(ASKED, THOUGHT))[0].ids
    assert text_of(template, [*row.prompt, *row.rejected]) == text_of(
        template, ChatEncoder(template).encode(conversation(ASKED, BAD))[0].ids
    )
    assert row.rejected_mask.all()
    (text,) = runs(template, row, sides(row)[1])[0]
    assert text.endswith("</think>\n\nWho knows." + MAKES[name].said[2:]) == (name in SWITCH)


def test_prompts_that_no_answer_can_continue_are_refused(template_of):
    with pytest.raises(BadRow, match="one answer has thoughts and the other none"):
        encoder_of(template_of("deepseek_v31")).pair(Preference(ASKED, BAD, THOUGHT))


# Bad rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Preference(ASKED, GOOD, (says(" By the river. \n"),)), "chosen and rejected become the same tokens"),
        (Preference((), GOOD, BAD), "the prompt is empty"),
        (Preference((SYSTEM, user(" \n")), GOOD, BAD), "the prompt is empty"),
        (Preference(ASKED, (says(" "),), BAD), "chosen is empty"),
        (Preference(ASKED, GOOD, ()), "rejected is empty"),
        (Preference(ASKED, GOOD, (says("", reasoning="Two."),)), "rejected is empty"),
        (Preference(ASKED, GOOD, (*BAD, QUESTION)), "rejected does not begin and end with the assistant's turn"),
        (Preference(ASKED, (says("Yes.", train=False),), BAD), "every turn of chosen is marked as not trained"),
        (Preference(ASKED, GOOD, BAD, (TOOL,)), "the chat template leaves out the tools"),
        (Preference((*ASKED, QUESTION), GOOD, BAD), "must alternate"),
        (Preference(ASKED, (says("\ufdd0"),), BAD), "no character"),
    ],
)
def test_bad_rows_say_why(row, reason, template_of):
    encoder = encoder_of(template_of("gemma3"))  # which strips texts
    with pytest.raises(BadRow, match=reason) as caught:
        encoder.pair(row)
    assert caught.value.fix or "character" in reason or "alternate" in reason
    assert not encoder.counts["rows"]


def test_an_unwanted_answer_may_be_any_but_empty(template_of):
    encoder = encoder_of(template_of("chatml"))
    assert encoder.answer(Kto(ASKED, BAD, False)).desirable is False
    with pytest.raises(BadRow, match="the answer is empty"):
        encoder.answer(Kto(ASKED, (says(""),), True))


# Overlong rows ------------------------------------------------------------------------------------------------------------


def talk(turns):
    """A prompt of exchanges that are told apart."""
    found = [SYSTEM]
    for number in range(turns):
        found += [user(f"Question {number}? " + "Tell me. " * 5), says(f"Answer {number}.")]
    return (*found, user("Last?"))


LONGER = (says("Who knows. " * 4),)


def limited(template, prompt, limit, overlong):
    """(row, counts, the row without a limit)."""
    pair = Preference(prompt, GOOD, LONGER)
    encoder = encoder_of(template, limit, overlong=overlong)
    return encoder.pair(pair), encoder.counts, encoder_of(template).pair(pair)


@pytest.mark.parametrize("overlong", ["error", "split", "drop", "left"])
def test_a_limit_of_just_the_length_cuts_nothing(overlong, template_of):
    template = template_of("llama3")
    *_, full = limited(template, talk(3), 4096, overlong)
    length = len(full.prompt) + len(full.rejected) - 1
    row, counts, _ = limited(template, talk(3), length, overlong)
    assert all(np.array_equal(one, other) for one, other in zip(row, full, strict=True))
    assert +counts == {"rows": 1}


def test_split_leaves_out_the_oldest_exchanges(template_of):
    template, prompt = template_of("chatml"), talk(6)
    # Each exchange has the same length, so that a limit of three of them is known.
    sizes = [len(template.prompt((SYSTEM, *talk(6)[1 + 2 * (6 - n) :]))) for n in range(7)]
    longer = len(limited(template, prompt, 4096, "split")[0].rejected)
    for limit, kept in ((sizes[3] + longer - 1, 3), (sizes[3] + longer - 2, 2), (sizes[0] + longer - 1, 0)):
        row, counts, full = limited(template, prompt, limit, "split")
        assert list(row.prompt) == template.prompt((SYSTEM, *prompt[1 + 2 * (6 - kept) :]))
        assert len(row.prompt) + longer - 1 <= limit
        assert all(np.array_equal(*pair) for pair in zip(row[1:], full[1:], strict=True))
        assert +counts == {"rows": 1, "shortened": 1}


def test_a_single_question_that_is_too_long_loses_its_beginning(template_of):
    template = template_of("llama3")
    limit = 60
    row, counts, full = limited(template, (QUESTION, says("Yes."), user("Tell me. " * 50)), limit, "split")
    alone = template.prompt((user("Tell me. " * 50),))
    kept = limit + 1 - len(full.rejected)
    assert list(row.prompt) == alone[:1] + alone[-(kept - 1) :]
    assert all(np.array_equal(*pair) for pair in zip(row[1:], full[1:], strict=True))
    assert +counts == {"rows": 1, "cut_left": 1}


@pytest.mark.parametrize(("name", "first"), [("llama3", 1), ("chatml", 0)])
def test_left_cuts_the_prompts_beginning_but_bos(name, first, template_of):
    template = template_of(name)
    row, counts, full = limited(template, talk(4), 80, "left")
    kept = 81 - len(full.rejected) - first
    assert list(row.prompt) == [*full.prompt[:first], *full.prompt[-kept:]]
    assert all(np.array_equal(*pair) for pair in zip(row[1:], full[1:], strict=True))
    assert +counts == {"rows": 1, "cut_left": 1}


def test_drop_and_error(template_of):
    template = template_of("chatml")
    row, counts, _ = limited(template, talk(4), 80, "drop")
    assert row is None
    assert +counts == {"rows": 1, "dropped": 1}
    with pytest.raises(BadRow, match="more than max_length 80"):
        limited(template, talk(4), 80, "error")


@pytest.mark.parametrize("overlong", ["split", "left"])
@pytest.mark.parametrize(("name", "least"), [("llama3", 2), ("chatml", 1)])
def test_an_answer_that_fills_the_window_is_refused(overlong, name, least, template_of):
    """There has to be room for one token of the prompt besides BOS."""
    template = template_of(name)
    *_, full = limited(template, talk(1), 4096, overlong)
    longest = len(full.rejected)
    row, *_ = limited(template, talk(1), longest + least - 1, overlong)
    assert len(row.prompt) == least
    with pytest.raises(BadRow, match=f"an answer alone is {longest} tokens"):
        limited(template, talk(1), longest + least - 2, overlong)


def test_keys_follow_the_settings_and_the_template(template_of):
    one, other = template_of("chatml"), template_of("qwen25")
    encoders = [encoder_of(one), encoder_of(other), encoder_of(one, 9), encoder_of(one, overlong="left")]
    assert len({encoder.key for encoder in encoders}) == len(encoders)
    assert encoder_of(one).key == encoders[0].key != ChatEncoder(one, max_length=4096).key


# On disk ------------------------------------------------------------------------------------------------------------------


def write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [parse_spec(str(path))]


def prepared(template, sources, make=prepare_pairs, max_length=512, emit=lambda _: None, **options):
    encoder = encoder_of(template, max_length)
    return make(sources, encoder, RowOptions(Path("cache"), vocabulary=1000, **options), emit)


ROWS = [
    {"prompt": "Where?", "chosen": "By the river.", "rejected": "Who knows."},
    {"prompt": [{"role": "user", "content": "When? é"}], "chosen": "At noon.", "rejected": "At one. " * 3},
    {"chosen": "\n\nHuman: Hm?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hm?\n\nAssistant: No."},
    {"prompt": "Where?", "chosen": "There, é.", "rejected": "Who knows."},
]


def test_pairs_on_disk_are_those_that_were_encoded(here, template_of):
    template = template_of("qwen3")
    pairs = [
        Preference((user("Where?"),), GOOD, BAD),
        Preference((user("When? é"),), (says("At noon."),), (says("At one. " * 3),)),
        Preference((QUESTION,), (says("Yes."),), (says("No."),)),
        Preference((user("Where?"),), (says("There, é."),), BAD),
    ]
    rows = prepared(template, write("a.jsonl", ROWS))
    encoded = [encoder_of(template).pair(pair) for pair in pairs]
    assert len(rows) == 4
    for index, row in enumerate(encoded):
        assert all(np.array_equal(one, other) for one, other in zip(rows[index], row, strict=True))
    assert rows.prompts.tolist() == [len(row.prompt) for row in encoded]
    assert rows.chosen.tolist() == [len(row.chosen) for row in encoded]
    assert rows.rejected.tolist() == [len(row.rejected) for row in encoded]
    assert rows.lengths.tolist() == [len(row.prompt) + len(row.chosen) + len(row.rejected) for row in encoded]
    assert rows.trained.tolist() == [int(row.chosen_mask.sum() + row.rejected_mask.sum()) for row in encoded]
    assert rows.bytes.tolist() == [13, 8, 4, 10]
    assert set(rows.examples) >= {conversation(pairs[0].prompt, answer) for answer in (GOOD, BAD)}
    assert self_test(ChatEncoder(template), rows.examples).skipped == 0


def test_a_cached_set_tells_the_same_story(here, template_of, monkeypatch):
    template = template_of("gemma2")
    rows = [*ROWS, ROWS[0], {**ROWS[0], "system": "Be brief."}, {**ROWS[1], "prompt": "Tell me. " * 99}]
    rows += [{**ROWS[0], "chosen": " "}, {**ROWS[0], "chosen": "Who knows. "}]
    rows.append({**ROWS[0], "chosen": [{"role": "assistant", "content": "Yes.", "reasoning_content": "Well."}]})
    sources, told = write("a.jsonl", rows), ([], [])
    first = prepared(template, sources, max_length=128, skip_bad=True, emit=told[0].append)
    monkeypatch.setattr(PairEncoder, "pair", None)
    again = prepared(template, sources, max_length=128, skip_bad=True, emit=told[1].append)
    messages = [[event.message for event in events if isinstance(event, (Noted, Warned))] for events in told]
    assert messages[0] == messages[1]
    assert set(messages[0]) == {
        "pairs with thoughts, which are trained: 1",
        "bad rows skipped: 2",
        "pairs that occur more than once (all are trained; 'mlxforge data dedup' leaves them out): 1",
        "pairs over max_length, the beginning of their prompts cut off: 1",
        "system messages put into the first user turn, since the template has no such role: 1",
    }
    assert len(first) == len(again) == 8
    assert (first.hash, first.counts, first.examples) == (again.hash, again.counts, again.examples)
    assert all(np.array_equal(*pair) for pair in zip(first[3], again[3], strict=True))


def test_bad_rows_are_told_by_line_and_nothing_is_kept(here, template_of):
    sources = write("a.jsonl", [ROWS[0], {**ROWS[0], "rejected": "By the river. "}, {**ROWS[0], "prompt": "\ufdd0"}])
    with pytest.raises(DataError) as caught:
        prepared(template_of("llama3"), sources)
    lines = str(caught.value).splitlines()
    assert lines[0] == "a.jsonl:2: chosen and rejected become the same tokens (remove the row: it teaches nothing)"
    assert lines[1].startswith("a.jsonl:3: the text holds U+FDD0")
    assert not any(Path("cache").iterdir())


def test_no_pair_at_all(here, template_of):
    sources = write("a.jsonl", [{"prompt": "p", "completion": "c", "label": True}])
    with pytest.raises(DataError, match="no pair is left to train on"):
        prepared(template_of("chatml"), sources)


def test_prompts_are_held_out_whole(here, template_of):
    """No pair of a held-out prompt is trained, whatever its answers."""
    rows = [{"prompt": f"Q{n % 20}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(60)]
    asked = {"prompt": "Q0", "chosen": "x", "rejected": "y"}
    rows += [{**asked, "system": "Be brief."}, {**asked, "tools": [TOOL]}]
    pairs = prepared(template_of("qwen25"), write("a.jsonl", rows))
    train, valid = split_by_hash(pairs, 0.3)
    texts = [{row[0].tobytes() for row in map(part.__getitem__, range(len(part)))} for part in (train, valid)]
    assert not texts[0] & texts[1]
    assert 0 < len(valid) < len(train) < len(pairs) == 62
    assert len(set(pairs.keys)) == 22
    assert (train.without(valid).hash, len(valid.without(pairs))) == (train.hash, 0)
    assert len(pairs.without(pairs.subset(np.array([1])))) == 59
    assert len({pairs.hash, train.hash, valid.hash}) == 3


def test_sources_keep_their_weights(here, template_of):
    write("a.jsonl", ROWS[:1])
    write("b.jsonl", ROWS[1:3])
    pairs = prepared(template_of("chatml"), [parse_spec("a.jsonl@2"), parse_spec("b.jsonl")])
    assert pairs.weights.tolist() == [2.0, 1.0, 1.0]
    assert pairs.subset(pairs.source == 1).weights.tolist() == [1.0, 1.0]


def test_judged_answers(here, template_of):
    template = template_of("llama3")
    rows = [
        {"prompt": "Where?", "completion": "By the river.", "label": True},
        {"prompt": "Where?", "completion": "Who knows.", "label": False},
        {"prompt": "When?", "chosen": "At noon.", "rejected": "At one."},
    ]
    sources = write("a.jsonl", rows)
    answers = prepared(template, sources, prepare_answers)
    kto = [
        Kto((user("Where?"),), GOOD, True),
        Kto((user("Where?"),), BAD, False),
        Kto((user("When?"),), (says("At noon."),), True),
        Kto((user("When?"),), (says("At one."),), False),
    ]
    encoded = [encoder_of(template).answer(row) for row in kto]
    assert answers.desirable.tolist() == [True, False, True, False]
    for index, row in enumerate(encoded):
        assert all(np.array_equal(one, other) for one, other in zip(answers[index], row, strict=True))
    assert answers[1].desirable is False
    assert answers.answers.tolist() == [len(row.answer) for row in encoded]
    assert answers.lengths.tolist() == [len(row.prompt) + len(row.answer) for row in encoded]
    assert answers.trained.tolist() == [int(row.mask.sum()) for row in encoded]
    assert len(set(answers.keys)) == 2
    assert answers.subset(~answers.desirable).desirable.tolist() == [False, False]
    pairs = prepared(template, sources)  # judged answers are paired when all are known
    for pair, wanted in ((pairs[1], 0), (pairs[0], 2)):
        assert all(np.array_equal(one, other) for one, other in zip(pair[:3], answers[wanted], strict=False))
        assert np.array_equal(pair.rejected, answers[wanted + 1].answer)
