"""Rows by the grammar: what must hold of every one of them."""

from __future__ import annotations

import re
from collections import Counter

import msgspec
import pytest
from test_commands_schema import SHIP

from mlxforge.core.errors import ConfigError
from mlxforge.data.commands import Thresholds
from mlxforge.data.formats.instructions import is_command, read_command
from mlxforge.data.splits import PARTS
from mlxforge.knowledge.commands.grammar import TEMPLATE_USES, Grammar, Shares, same
from mlxforge.knowledge.commands.lexicon import Lexicon
from mlxforge.knowledge.commands.line import texts
from mlxforge.knowledge.commands.measure import distinct, diversity
from mlxforge.knowledge.commands.reader import read_schema
from mlxforge.knowledge.commands.validate import text_problems
from mlxforge.runs.synth_commands import split

COUNT = 400


@pytest.fixture(scope="module")
def ship(tmp_path_factory):
    path = tmp_path_factory.mktemp("schema") / "ship.yaml"
    path.write_text(SHIP)
    return read_schema(path)


@pytest.fixture(scope="module")
def rows(ship):
    return list(Grammar(ship).rows(COUNT))


def test_the_shares_are_kept(rows):
    assert Counter(row.case for row in rows) == {
        "plain": 160,
        "context": 80,
        "clarification": 40,
        "incomplete": 40,
        "off_topic": 40,
        "typo": 40,
    }


def test_every_answer_holds_and_is_in_the_format_of_commands(ship, rows):
    for row in rows:
        values = row.values_of(0)
        assert not text_problems(ship, values["output"]), values
        assert is_command(values)
        assert read_command(values).messages[-1].content == values["output"]


def test_what_an_answer_says_was_said(rows):
    """Every value is in the instruction, or in the context of a row that has it there; a typo never changes one."""
    for row in rows:
        for name, value in row.answer["arguments"].items():
            context = msgspec.json.encode(row.context).decode() if row.case == "context" else ""
            for text in texts(value):
                assert text in row.instruction or text in context, (row, name)


def test_the_context_is_needed_where_it_is_the_case(rows):
    for row in rows:
        if row.case == "context":
            hidden = [text for value in row.answer["arguments"].values() for text in texts(value)]
            assert any(not re.search(rf"(?<![\w.]){re.escape(text)}(?![\w.])", row.instruction) for text in hidden), row


def test_actions_by_case(rows):
    actions = {case: {row.answer["action"] for row in rows if row.case == case} for case in Counter(r.case for r in rows)}
    assert actions["plain"] == actions["context"] == {"run", "confirm"}  # --force and 'logs clear' want a confirmation
    assert actions["typo"] == {"confirm"}
    assert actions["clarification"] == {"suggest"}
    assert actions["incomplete"] == actions["off_topic"] == {"ask"}
    assert all(row.answer["command"] is None for row in rows if row.case == "off_topic")
    for row in rows:
        if row.case == "incomplete":
            assert row.answer["missing"]
            assert not row.answer["arguments"].keys() & set(row.answer["missing"])


def test_no_instruction_twice_and_no_template_often(ship, rows):
    assert len({same(row.instruction) for row in rows}) == len(rows)
    assert max(Counter(row.template for row in rows).values()) <= TEMPLATE_USES
    figures = diversity(ship, rows, [row.instruction for row in rows])
    assert figures["equal"] == 0
    assert figures["commands"] == 3
    assert len(figures["formality"]) == 8
    assert 0.3 < figures["reordered"] < 0.9


def test_no_wording_means_two_commands(rows):
    meant: dict[str, set[str]] = {}
    for row in rows:
        if row.case in ("plain", "typo", "context"):
            meant.setdefault(row.template, set()).add(row.answer["command"])
    assert all(len(commands) == 1 for commands in meant.values())


def test_the_same_seed_gives_the_same_rows_and_more_begin_with_fewer(ship, rows):
    assert list(Grammar(ship).rows(100)) == rows[:100]
    assert list(Grammar(ship, seed=1).rows(100)) != rows[:100]


def test_rows_of_one_command_and_values_are_in_one_part(rows):
    parts = split(rows, 0.1, 0.1)
    places: dict[int, set[str]] = {}
    for row in rows:
        places.setdefault(row.group, set()).add(parts[row.number])
    assert all(len(found) == 1 for found in places.values())
    assert Counter(parts.values()).keys() == {"train", "valid", "test"}
    said = {
        part: {
            msgspec.json.encode([r.answer["command"], a])
            for r in rows
            if (a := r.answer["arguments"]) and parts[r.number] == part
        }
        for part in PARTS
    }
    assert all(said.values())
    assert not said["train"] & said["valid"] | said["train"] & said["test"] | said["valid"] & said["test"]


def test_a_small_schema_gives_what_it_has(tmp_path):
    (tmp_path / "s.yaml").write_text("cli_name: bell\ncommands: {ring: {help: Ring the bell.}}\n")
    grammar = Grammar(read_schema(tmp_path / "s.yaml"))
    rows = list(grammar.rows(2000))
    assert grammar.impossible == ["context", "clarification", "incomplete"]
    assert grammar.short.total() + len(rows) == 2000
    assert grammar.short["plain"] > 0
    with pytest.raises(ConfigError, match="incomplete"):
        Grammar(grammar.schema, shares=Shares(plain=0, context=0, clarification=0, off_topic=0, typo=0))


def test_thresholds_of_ones_own_move_the_confidence(ship):
    limits = Thresholds(run=0.8, confirm=0.6, suggest=0.5)
    for row in Grammar(ship, thresholds=limits).rows(100):
        assert not text_problems(ship, row.values_of(0)["output"], limits)


def test_distinct_by_hand():
    # a b a b: 2 of 4 words, 2 of 3 pairs; c alone has no pair.
    assert distinct(["a b a b", "c"], 1) == 3 / 5
    assert distinct(["a b a b", "c"], 2) == 2 / 3
    assert distinct([], 1) == 0


def test_a_typo_touches_no_option(ship):
    options = {"--trace", "--force", "--wait", "--no-wait", "--environment", "--replicas", "--share", "--label", "--window"}
    options |= {"--before"}
    shares = Shares(plain=0, context=0, clarification=0, incomplete=0, off_topic=0)
    found = [word for row in Grammar(ship, shares=shares).rows(400) for word in re.findall(r"(?<!\S)--[\w-]+", row.instruction)]
    assert len(found) > 50
    assert set(found) <= options


def test_a_wording_of_two_commands_is_used_by_neither(tmp_path):
    text = "cli_name: x\ncommands:\n  one: {help: Clean the house.}\n  two: {help: Clean the house.}\n"
    text += "  three: {help: Sort a list.}\n  four: {help: Sort a list and print it.}\n"
    (tmp_path / "x.yaml").write_text(text)
    verbs = Lexicon.of(read_schema(tmp_path / "x.yaml")).verbs
    assert verbs["one"] == verbs["two"] == verbs["three"] == ()
    assert verbs["four"] == ("sort a list and print it",)


def test_questions_ask_for_what_is_missing(rows):
    for row in rows:
        if "missing" in row.answer:
            asked = row.answer["question"].rstrip("?").replace(" and ", ", ").split(", ")
            assert [words.lower().removeprefix("which ") for words in asked] == row.answer["missing"]
        elif "candidates" in row.answer:
            assert all(name in row.answer["question"] for name in row.answer["candidates"])


def test_values_of_several_words_are_quoted(tmp_path):
    text = "cli_name: x\ncommands: {say: {help: Say a text., args: {text: "
    text += "{positional: true, required: true, values: [good day]}}}}\n"
    (tmp_path / "x.yaml").write_text(text)
    shares = Shares(context=0, clarification=0, incomplete=0, off_topic=0)
    rows = list(Grammar(read_schema(tmp_path / "x.yaml"), shares=shares).rows(30))
    assert rows
    assert all('"good day"' in row.instruction for row in rows)
