"""The dashboard in a pseudo-terminal: keys become wishes, and the terminal is given back however the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from mlxforge.core.eventlog import EventLog

JOB = """
import sys, time
sys.path.insert(0, {folder!r})
from screens import make_run
from mlxforge.core.events import Control
from mlxforge.ui.listen import listeners
control = Control()
with listeners({mode!r}, control) as emit:
    for event in make_run(40, path={path!r}, end=False, first={first}): emit(event)
{body}
"""
TALK = """
    print("a library talks"); print("and complains", file=sys.stderr)
"""
ASKED = """
print("ASKED", control.save, control.evaluate, control.finish)
"""
WAIT = """
    end = time.time() + 8
    while time.time() < end and not control.finish: time.sleep(0.02)
    for event in make_run(40, path='runs/demo')[-1:]: emit(event)
"""


@pytest.fixture
def job(terminal, request):
    folder = str(request.path.parent.parent)

    def start(body: str = WAIT, mode: str = "auto", path: str = "runs/demo", first: int = 1, **size: int):
        code = JOB.format(folder=folder, body=TALK + body + ASKED, mode=mode, path=path, first=first)
        return terminal(code, **size)

    return start


def same_modes(before, after) -> bool:
    return before[3] == after[3] and before[0] == after[0]


def test_keys_become_wishes_and_the_terminal_is_given_back(job) -> None:
    run = job()
    before = run.modes()
    run.until("40/40")
    assert not same_modes(before, run.modes())
    run.type("\x1b[C")  # an arrow is no key
    run.type("s")
    run.until("saving after this step")
    run.type("e")
    run.until("saving and evaluating after this step")
    run.type("q")
    text = run.until("ASKED")
    # Modes are read while the program still holds the terminal: afterwards they would be those of a closed one.
    assert "ASKED True True True" in run.until("True True True")
    assert same_modes(before, run.modes())
    assert run.wait() == 0
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_what_stays_is_the_curve_the_summary_and_what_others_printed(job) -> None:
    run = job(width=100, height=44)
    run.until("40/40")
    run.type("q")
    assert run.wait() == 0
    screen = "\n".join(run.screen())
    for wanted in ("a library talks", "and complains", "┤", "✓ demo finished", "4.200 → 2.000", "runs/demo", "runs plot demo"):
        assert wanted in screen
    assert "evaluate " not in screen


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("    raise RuntimeError('broken')", 1),
        (
            # A shell's background job starts with SIGINT ignored, and so would the child of a test run there.
            "    import os, signal; signal.signal(2, signal.default_int_handler)\n"
            "    time.sleep(0.3); os.kill(os.getpid(), 2); time.sleep(5)",
            -signal.SIGINT,
        ),
        ("    import os, signal; time.sleep(0.3); os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)", -signal.SIGTERM),
        ("    sys.exit(3)", 3),
    ],
    ids=["exception", "SIGINT", "SIGTERM", "exit"],
)
def test_the_terminal_is_given_back_after(job, body, code) -> None:
    run = job(body)
    before = run.modes()
    run.until("?1049l")
    after = run.modes()
    assert run.wait() == code
    assert same_modes(before, after) or b"?25h" in run.written
    text = run.written.decode()
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_ctrl_z_gives_the_terminal_back_until_the_job_goes_on(job) -> None:
    run = job()
    before = run.modes()
    run.until("40/40")
    run.type("\x1a")
    run.until("\x1b[?1049l")
    assert os.WIFSTOPPED(os.waitpid(run.pid, os.WUNTRACED)[1])
    assert same_modes(before, run.modes())
    run.written = b""
    run.signal(signal.SIGCONT)
    run.until("40/40")
    run.type("q")
    assert run.wait() == 0
    assert run.written.count(b"\x1b[?1049l") == 1


def test_resizing_is_survived_down_to_nothing(job) -> None:
    run = job()
    run.until("40/40")
    for width, height in ((60, 15), (20, 5), (1, 1), (140, 40)):
        run.resize(width, height)
        run.signal(signal.SIGWINCH)
        end = time.time() + 0.35
        while time.time() < end:
            run._read()
    run.written = b""
    run.until("numbers")
    end = time.time() + 1.2
    while time.time() < end:
        run._read()
    assert any("sample at step 40" in line for line in run.screen())
    assert "stumbled" not in "\n".join(run.screen())
    run.type("q")
    assert run.wait() == 0


def test_a_resumed_run_shows_its_earlier_sittings(job, tmp_path, run_events) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        for event in run_events(20, path=str(tmp_path), end=False):
            log(event)
    run = job(path=str(tmp_path), first=21, width=100, height=30)
    run.until("40/40")
    run.type("q")
    assert run.wait() == 0
    under_the_curve = next(line for line in run.screen() if line.split()[:1] == ["5"] or " 10 " in line)
    assert "40" in under_the_curve


@pytest.mark.parametrize("mode", ["plain", "quiet"])
def test_lines_in_a_terminal_when_asked_for(job, mode) -> None:
    run = job("    pass", mode=mode)
    assert run.wait() == 0
    assert b"\x1b" not in run.written
    assert b"warning  the rate is high" in run.written


def outputs(mode: str, folder: str) -> tuple[str, str]:
    code = JOB.format(folder=folder, body="    pass", mode=mode, path="runs/demo", first=1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return done.stdout, done.stderr


def test_a_pipe_gets_lines_and_json_leaves_stdout_alone(request) -> None:
    folder = str(request.path.parent.parent)
    out, err = outputs("auto", folder)
    assert "step 40/40" in out
    assert not err
    out, err = outputs("json", folder)
    assert not out
    assert "step 40/40" in err
