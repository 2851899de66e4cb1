"""Metrics of commands, JSON and calibration: by hand, and rows that `mlxforge synth commands` makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxforge.core.errors import ConfigError, DataError
from mlxforge.evals.commands import called, is_json, same_value
from mlxforge.evals.graded import Graded
from mlxforge.evals.metrics import METRICS, column, value

MATCHES = ("command", "arguments", "flags", "command_exact", "action")
RIGHT = {"command": "copy", "arguments": {"source": "a.txt", "times": 2}, "flags": ["--force", "-v"], "confidence": 0.95}
RIGHT |= {"action": "run"}
ASKS = {"command": None, "arguments": {}, "flags": [], "confidence": 0.2, "action": "ask", "question": "What do you want?"}


def row(answer, reference=RIGHT, schema=None):
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return Graded(answer=text, references=(json.dumps(reference),), schema=schema)


def scores(name, *rows):
    return column(METRICS[name], rows).scores()


def figure(name, *rows):
    return value(column(METRICS[name], rows)).value


@pytest.mark.parametrize(
    ("answer", "expected"),  # command, arguments, flags, exact, action
    [
        (RIGHT, (1, 1, 1, 1, 1)),
        (RIGHT | {"flags": ["-v", "--force"]}, (1, 1, 1, 1, 1)),
        (RIGHT | {"arguments": {"times": 2.0, "source": "a.txt"}}, (1, 1, 1, 1, 1)),
        (RIGHT | {"confidence": 0.1, "action": "ask"}, (1, 1, 1, 1, 0)),
        (RIGHT | {"command": "move"}, (0, 1, 1, 0, 1)),
        (RIGHT | {"command": "Copy"}, (0, 1, 1, 0, 1)),
        (RIGHT | {"arguments": {"source": "a.txt"}}, (1, 0, 1, 0, 1)),
        (RIGHT | {"arguments": {"source": "a.txt", "times": "2"}}, (1, 0, 1, 0, 1)),
        (RIGHT | {"arguments": {"source": "a.txt", "times": 2, "to": "b"}}, (1, 0, 1, 0, 1)),
        (RIGHT | {"flags": ["--force"]}, (1, 1, 0, 0, 1)),
        (RIGHT | {"flags": ["--force", "-v", "-v"]}, (1, 1, 0, 0, 1)),  # -v -v may be more than -v
        (RIGHT | {"command": None}, (0, 1, 1, 0, 1)),
        ("", (0, 0, 0, 0, 0)),
        ("copy a.txt --force", (0, 0, 0, 0, 0)),
        ("```json\n" + json.dumps(RIGHT) + "\n```", (0, 0, 0, 0, 0)),  # a program would not decode it
        (json.dumps(RIGHT) + " done", (0, 0, 0, 0, 0)),
        ("[1, 2]", (0, 0, 0, 0, 0)),
        ({"command": "copy"}, (0, 0, 0, 0, 0)),
        (RIGHT | {"flags": "--force"}, (0, 0, 0, 0, 0)),
        (RIGHT | {"flags": [1]}, (0, 0, 0, 0, 0)),
        (RIGHT | {"command": 7}, (0, 0, 0, 0, 0)),
    ],
)
def test_matches_by_hand(answer, expected):
    assert tuple(scores(name, row(answer))[0] for name in MATCHES) == expected


def test_to_ask_where_one_should_is_right():
    assert scores("command_exact", row(ASKS, ASKS), row(RIGHT, ASKS), row(ASKS)) == [1, 0, 0]


def test_one_of_several_references_is_enough():
    graded = Graded(answer=json.dumps(ASKS), references=(json.dumps(RIGHT), json.dumps(ASKS)))
    assert scores("command_exact", graded) == [1]


def test_a_reference_that_is_no_command_is_an_error_with_its_row():
    with pytest.raises(DataError, match=r"row 2: not an answer of .*: 'Paris'"):
        column(METRICS["command"], [row(RIGHT), Graded(answer="{}", references=("Paris",))])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN, PLAIN)
@settings(max_examples=100, deadline=None)
def test_values_are_equal_when_json_says_so(one, other):
    assert same_value(one, one)
    assert same_value(one, other) == same_value(other, one)
    assert same_value(json.loads(json.dumps(one)), one)
    assert not same_value(1, True)
    assert not same_value([0], [False])


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": 1}', 1), ("[]", 1), ("3", 1), ('"x"', 1), (" null\n", 1), ("", 0), ("{'a': 1}", 0), ('{"a": 1,}', 0),
        ("NaN", 0), ('{"a": 1} {"b": 2}', 0), ("[" * 100_000, 0), ('"\ud800"', 0), ('{"a": 1', 0),
    ],
)  # fmt: skip
def test_json_validity(text, valid):
    assert scores("json_valid", Graded(answer=text)) == [valid]


def test_is_json_tells_what_asks_for_json():
    assert [is_json(text) for text in ('{"a": 1}', "[1]", "42", "Paris", "")] == [True, True, False, False, False]


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0}, "to": {"$ref": "#/$defs/place"}},
    "required": ["n"],
    "additionalProperties": False,
    "$defs": {"place": {"enum": ["mill", "river"]}},
}


def test_schema_validity():
    answers = ['{"n": 3}', '{"n": 3, "to": "mill"}', '{"n": -1}', '{"n": 1, "to": "sea"}', '{"n": 1, "m": 2}', "{}", "no", ""]
    graded = [Graded(answer=answer, schema=SCHEMA) for answer in answers]
    assert scores("schema_valid", *graded) == [1, 1, 0, 0, 0, 0, 0, 0]
    assert scores("schema_valid", Graded(answer="{}")) == [None]


def test_every_row_is_held_to_its_own_schema():
    graded = [Graded(answer="3", schema={"const": n}) for n in range(200)]
    assert scores("schema_valid", *graded) == [float(n == 3) for n in range(200)]


@pytest.mark.parametrize("schema", [{"type": "objekt"}, {"$ref": "#/$defs/none"}, {"$ref": "https://example.com/schema.json"}])
def test_a_schema_that_is_none_is_an_error_and_nothing_is_fetched(schema, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_: pytest.fail("it was looked for in a network"))
    with pytest.raises(DataError, match="row 1"):
        column(METRICS["schema_valid"], [Graded(answer="{}", schema=schema)])


def says(confidence, correct, schema=None):
    return row(RIGHT | {"confidence": confidence, "command": "copy" if correct else "move"}, schema=schema)


CALIBRATED = [
    says(0.95, True), says(0.91, True), says(1.0, False),  # run: the bin from .9 on
    says(0.75, True), says(0.72, False),  # confirm
    says(0.5, True),  # suggest
    says(0.05, False), says(0.0, False),  # ask
]  # fmt: skip


def test_expected_calibration_error_by_hand():
    """Bins: [.9, 1] |2.86 - 2|, [.7, .8) |1.47 - 1|, [.5, .6) |.5 - 1|, [0, .1) |.05 - 0|; their sum over 8 rows."""
    assert figure("ece", *CALIBRATED) == pytest.approx((0.86 + 0.47 + 0.5 + 0.05) / 8)


def test_certain_and_always_right_is_calibrated():
    assert figure("ece", *[says(1, True)] * 5, *[says(0, False)] * 5) == 0
    assert figure("ece", *[says(1, False)] * 5) == 1


def test_the_interval_holds_an_error_that_no_draw_comes_down_to():
    """In each of five bins just as many are right as say so: the error is 0, and that of every draw is more."""
    graded = [says(tenths / 10, n < 2 * tenths) for tenths in (1, 3, 5, 7, 9) for n in range(20)]
    found = value(column(METRICS["ece"], graded))
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.low <= found.value < 0.05 < found.high


def test_rates_and_accuracies_by_threshold():
    rates = {name: figure(f"{name}_rate", *CALIBRATED) for name in ("run", "confirm", "suggest", "ask", "clarify")}
    assert rates == {"run": 3 / 8, "confirm": 2 / 8, "suggest": 1 / 8, "ask": 2 / 8, "clarify": 3 / 8}
    accuracies = [figure(f"{name}_accuracy", *CALIBRATED) for name in ("run", "confirm", "suggest", "ask", "clarify")]
    assert accuracies == pytest.approx([2 / 3, 1 / 2, 1, 0, 1 / 3])
    assert value(column(METRICS["run_accuracy"], CALIBRATED)).n == 3


def test_the_thresholds_are_those_of_the_schema():
    strict = {"x-thresholds": {"run": 0.99, "confirm": 0.92, "suggest": 0.6}}
    graded = [says(0.95, True, strict), says(0.9, True, strict), says(0.5, True, strict)]
    assert [figure(f"{name}_rate", *graded) for name in ("run", "confirm", "suggest", "ask")] == [
        0,
        *[pytest.approx(1 / 3)] * 3,
    ]


@pytest.mark.parametrize("limits", [{"run": 0.1}, {"walk": 1}, {"run": "high"}, 3])
def test_thresholds_that_are_none_are_an_error(limits):
    with pytest.raises((DataError, ConfigError), match=r"row 1.*x-thresholds"):
        column(METRICS["run_rate"], [says(0.5, True, {"x-thresholds": limits})])


@pytest.mark.parametrize("stated", [None, True, "0.9", 1.5, -0.1])
def test_an_answer_without_a_confidence_is_left_out_of_the_error_and_does_nothing(stated):
    graded = row(RIGHT | {"confidence": stated})
    assert called(graded.answer).confidence is None
    assert scores("ece", graded) == [None]
    assert [scores(f"{name}_rate", graded)[0] for name in ("run", "confirm", "clarify")] == [0, 0, 0]
    assert scores("command_exact", graded) == [1]


def test_no_answer_of_a_kind_says_so():
    found = value(column(METRICS["run_accuracy"], [says(0.1, True)]))
    assert (found.value, found.n) == (None, 0)
    assert found.why


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from mlxforge.knowledge.commands.reader import read_schema
    from mlxforge.runs.synth_commands import synth_commands

    folder = tmp_path_factory.mktemp("commands") / "made"
    synth_commands(read_schema(Path("data/commands/mlxforge.yaml")), folder, rows=120, seed=3)
    lines = [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    schema = json.loads((folder / "schema.json").read_text())
    return [Graded(answer=line["output"], references=(line["output"],), schema=schema) for line in lines]


def test_what_synth_commands_writes_is_right_and_valid(made):
    for name in (*MATCHES, "json_valid", "schema_valid"):
        assert figure(name, *made) == 1
    rates = [figure(f"{name}_rate", *made) for name in ("run", "confirm", "suggest", "ask")]
    assert sum(rates) == pytest.approx(1)
    assert rates[2] + rates[3] == pytest.approx(figure("clarify_rate", *made))
    assert figure("run_accuracy", *made) == 1


def test_answers_of_the_neighbour_are_mostly_wrong(made):
    moved = [
        Graded(answer=one.answer, references=other.references, schema=one.schema)
        for one, other in zip(made, [*made[1:], made[0]], strict=True)
    ]
    for name in ("command_exact", "arguments", "flags", "command"):
        assert figure(name, *moved) < 0.95
    by_row = zip(*(scores(name, *moved) for name in ("command", "arguments", "flags", "command_exact")), strict=True)
    assert all(exact == command * arguments * flags for command, arguments, flags, exact in by_row)
    assert figure("schema_valid", *moved) == 1
