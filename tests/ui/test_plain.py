"""Lines for pipes: few, whole, in any encoding."""

from __future__ import annotations

import io

import pytest

from mlxforge.core import events as ev
from mlxforge.ui.plain import Plain, Quiet
from mlxforge.ui.state import State
from mlxforge.ui.summary import summary


def heard(listener_type: type[Plain], events: list[ev.Event]) -> list[str]:
    stream = io.StringIO()
    listener = listener_type(stream)
    for event in events:
        listener(event)
    listener.close()
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("steps", [3, 20, 100, 731, 5000])
def test_a_run_has_a_few_dozen_lines(run_events, steps) -> None:
    lines = [line for line in heard(Plain, run_events(steps)) if line.startswith("step")]
    assert min(steps, 10) <= len(lines) <= 22
    assert f"{steps}/{steps}" in lines[-1]


def test_lines_tell_what_happened(run_events) -> None:
    lines = heard(Plain, run_events(100, metrics=True))
    text = "\n".join(lines)
    for wanted in (
        "prepare  reading  10 files",
        "note     2 duplicates",
        "mlxforge demo · cpt · tiny",
        "lr 3.0e-04",
        "margin 1.000",
    ):
        assert wanted in text
    for wanted in ("eval     step 100  valid  loss 2.1", "saved    step 100  runs/demo", "warning  the rate", "→ Varn↵is 世界"):
        assert wanted in text
    assert "✓ demo finished · 100 steps" in text
    assert "\x1b" not in text


def test_what_is_left_is_told_as_of_then(run_events) -> None:
    """0.2 seconds a step; the events are old."""
    lines = heard(Plain, run_events(100))
    assert next(line for line in lines if line.startswith("step  50/100")).endswith("eta 0:10")


def test_a_line_is_the_mean_over_trained_tokens() -> None:
    stream = io.StringIO()
    listener = Plain(stream)
    for step, (loss, trained) in enumerate([(9.0, 1), (2.0, 10), (4.0, 30)], 1):
        listener(
            ev.StepDone(
                step=step,
                steps=60,
                epoch=0,
                loss=loss,
                learning_rate=0,
                grad_norm=0,
                tokens=1,
                trained=trained,
                slots=1,
                seconds=1,
            )
        )
    assert "loss 9.000" in stream.getvalue()
    assert "loss 3.500" in stream.getvalue()


def test_quiet_says_warnings_and_the_end(run_events) -> None:
    lines = heard(Quiet, run_events(100))
    assert lines[0] == "warning  the rate is high"
    assert lines[1].startswith("✓ demo finished")


def test_an_ascii_stream_gets_ascii(run_events) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    listener = Plain(stream)
    for event in run_events(10):
        listener(event)
    stream.seek(0)
    assert "demo - cpt - tiny" in stream.read()


def test_the_summary_has_outcome_place_and_next(run_events) -> None:
    state = State(now=lambda: 0.0)
    for event in run_events(100):
        state.hear(event)
    text = summary(state).plain
    for wanted in ("4.200 → 2.000", "66.70 → 7.390", "1.810 → 0.860", "1.990 at step 90", "2.0% → 41.0%", "2,831 tokens/s"):
        assert wanted in text
    for wanted in (
        "saved in  runs/demo",
        "next      mlxforge runs plot demo",
        "! the rate is high",
        "· 2 duplicates dropped",
        "1.62 GB",
    ):
        assert wanted in text


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"valid": None, "before": None, "retention": None, "best": None, "task": None, "tokens_per_second": None},
        {"valid": {"loss": 2.0}, "retention": {"before": None, "after": {"loss": 1.0, "bpb": None}}, "best": {"step": 3}},
        {"task": {"a": 1, "b": {"c": 0.5, "d": "x\x1b[2Jy"}, "e": None}, "train_loss": 2},
    ],
)
@pytest.mark.parametrize("status", ["finished", "interrupted", "failed", "strange"])
def test_a_summary_bears_any_result(result, status) -> None:
    state = State(now=lambda: 0.0)
    state.hear(ev.RunStarted(run="r", objective="cpt", path="runs/r", config={}, plan={}))
    state.hear(ev.RunEnded(run="r", status=status, step=3, result=result, reason="why"))
    text = summary(state).plain
    assert f"r {status}" in text
    assert "why" in text
    assert "\x1b" not in text
