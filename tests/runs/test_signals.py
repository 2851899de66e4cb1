"""Signals to a real process: the first Ctrl-C saves, the second stops at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

CODE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from mlxforge.cli.main import main
main(sys.argv[1:])
"""


def started(documents, runs):
    """A long run in a process of its own, after its second step."""
    words = ["cpt", "--plain", "--data", str(documents), "--runs-dir", str(runs), "--name", "a", "--steps", "5000"]
    words += ["--max-length", "64", "--batch-tokens", "512", "--eval-every", "5000", "--sample-tokens", "0"]
    process = subprocess.Popen([sys.executable, "-c", CODE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = runs / "a" / "events.jsonl"
    until = time.time() + 60
    while not (log.exists() and log.read_text().count('"StepDone"') >= 2):
        assert time.time() < until
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return process


def test_ctrl_c_saves_and_exits_130(documents, tmp_path):
    process = started(documents, tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the state is saved" in err
    assert "--resume a" in err
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["status"] == "interrupted"
    step = record["result"]["steps"]
    assert os.readlink(tmp_path / "a" / "last") == f"checkpoints/step-{step:06d}"


def test_a_second_ctrl_c_stops_at_once(documents, tmp_path):
    process = started(documents, tmp_path)
    # Held, so that both arrive before the step at hand is done.
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "interrupted"
