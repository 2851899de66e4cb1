"""The event log: what is emitted is what is read, whatever happened to the file."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import pytest

from mlxforge.core import events as ev
from mlxforge.core.errors import MlxforgeError
from mlxforge.core.eventlog import EventLog, replay

TOLD = [
    ev.RunStarted(run="r", objective="cpt", path="runs/r", config={"model": "tiny"}, plan={"memory": {"model": 3}}),
    ev.Progress(task="reading", done=1, total=2),
    ev.StepDone(
        step=1, steps=2, epoch=0.5, loss=2.5, learning_rate=1e-4, grad_norm=1, tokens=9, trained=8, slots=10, seconds=1,
        metrics={"m": 1.0},
    ),
    ev.Evaluated(step=1, name="valid", loss=2, perplexity=7.4, bpb=1, tokens=9, seconds=1, best=True),
    ev.Sampled(step=1, prompt="a\nb", text="世界\u2028\x1b"),
    ev.Saved(step=1, path="p"),
    ev.Noted(message="n"),
    ev.Warned(message="w"),
    ev.RunEnded(run="r", status="finished", step=2, result={"valid": None}, next_steps=["x"]),
]  # fmt: skip


@pytest.fixture
def log(tmp_path) -> Path:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as listener:
        for event in TOLD:
            listener(event)
    return path


def test_replay_is_what_was_emitted(log) -> None:
    assert list(replay(log)) == TOLD


def test_every_event_is_in_the_file_at_once(tmp_path) -> None:
    listener = EventLog(tmp_path / "events.jsonl")
    for many, event in enumerate(TOLD, 1):
        listener(event)
        assert len(list(replay(tmp_path / "events.jsonl"))) == many
    listener.close()


def test_offset_and_truncate_take_back_what_came_after(tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as listener:
        listener(TOLD[0])
        offset = listener.offset()
        assert offset == path.stat().st_size
        listener(TOLD[1])
        listener.truncate(offset)
        listener(TOLD[2])
    assert list(replay(path)) == [TOLD[0], TOLD[2]]
    with EventLog(path) as again:
        assert again.offset() == path.stat().st_size


def test_a_half_written_last_line_is_passed_over_and_dropped_on_opening(log) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    assert list(replay(log)) == TOLD[:-1]
    with EventLog(log) as listener:
        listener(TOLD[-1])
    assert log.read_bytes() == whole


def test_damaged_lines_and_events_of_later_versions_are_passed_over(log) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([b"\x00\xff\n", lines[0], b'{"event":"Later","x":1}\n', b"[]\n", b"{}\n", *lines[1:]]))
    assert list(replay(log)) == TOLD


def test_a_loss_that_is_not_finite_comes_back_as_nan(tmp_path) -> None:
    nan = float("nan")
    with EventLog(tmp_path / "e") as listener:
        listener(
            ev.StepDone(
                step=1, steps=2, epoch=0, loss=nan, learning_rate=0, grad_norm=float("inf"), tokens=1, trained=1, slots=1,
                seconds=1, skipped=True, metrics={"m": nan},
            )
        )  # fmt: skip
    (event,) = replay(tmp_path / "e")
    assert isinstance(event, ev.StepDone)
    assert math.isnan(event.loss)
    assert math.isnan(event.grad_norm)
    assert math.isnan(event.metrics["m"])
    assert event.skipped


def test_follow_sees_what_is_appended_until_the_end(tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    seen: list[ev.Event] = []
    reader = threading.Thread(target=lambda: seen.extend(replay(path, follow=True, poll=0.01)))
    reader.start()
    with open(path, "ab", buffering=0) as file:
        for event in TOLD:
            line = ev.encode(event) + b"\n"
            file.write(line[:7])
            time.sleep(0.02)
            file.write(line[7:])
    reader.join(5)
    assert not reader.is_alive()
    assert seen == TOLD


def test_follow_ends_with_the_process_and_misses_nothing_it_wrote_last(tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    listener = EventLog(path)
    listener(TOLD[0])
    asked = 0

    def alive() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            listener(TOLD[1])
        return asked < 3

    assert list(replay(path, follow=True, alive=alive, poll=0.01)) == TOLD[:2]
    assert list(replay(tmp_path / "none", follow=True, alive=lambda: False)) == []
    assert list(replay(tmp_path / "none")) == []


def test_follow_goes_on_after_a_run_was_resumed_from_a_checkpoint(tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    listener = EventLog(path)
    listener(TOLD[0])
    offset = listener.offset()
    listener(TOLD[1])
    following = replay(path, follow=True, poll=0.01, alive=lambda: True)
    assert [next(following), next(following)] == TOLD[:2]
    later = threading.Timer(0.1, lambda: (listener.truncate(offset), time.sleep(0.1), listener(TOLD[2]), listener(TOLD[-1])))
    later.start()
    assert list(following) == [TOLD[2], TOLD[-1]]


def test_a_full_disk_is_one_clear_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    listener = EventLog.__new__(EventLog)
    listener.path, listener._file = full, open(full, "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(MlxforgeError, match="No space left"):
        listener(TOLD[0])
    listener.close()


def test_writing_an_event_is_cheap(tmp_path) -> None:
    with EventLog(tmp_path / "e") as listener:
        begin = time.perf_counter()
        for _ in range(500):
            listener(TOLD[2])
        assert (time.perf_counter() - begin) / 500 < 1e-3
