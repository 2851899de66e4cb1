"""``mlxforge synth commands`` as a user runs it: rows that are checked, split, written whole, and trained on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlxforge.cli.main import run
from mlxforge.knowledge.commands.reader import read_schema
from mlxforge.knowledge.commands.validate import text_problems

SCHEMA = """\
cli_name: lamp
commands:
  light: {help: Switch a lamp on., args: {room: {positional: true, required: true, values: [kitchen, hall, attic]},
    colour: {enum: [white, red, blue]}, level: {type: integer, min: 1, max: 9}}, flags: {--slowly: Fade it in.}}
  off: {help: Turn a lamp off., args: {room: {positional: true, required: true, values: [kitchen, hall, attic]}}}
"""


@pytest.fixture
def schema(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lamp.yaml").write_text(SCHEMA)
    return "lamp.yaml"


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_rows_are_written_with_their_format(schema, capsys):
    assert run(["synth", "commands", schema, "-o", "data/lamp", "--rows", "200", "--json"], debug=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert sum(result["rows"].values()) == 200 == sum(result["cases"].values())
    assert set(files("data/lamp")) == {"README.md", "schema.json", "schema.yaml", "test.jsonl", "train.jsonl", "valid.jsonl"}
    known = read_schema(Path("data/lamp/schema.yaml"))
    for path in result["files"].values():
        for line in Path(path).read_text().splitlines():
            assert not text_problems(known, json.loads(line)["output"])
    assert json.loads(Path("data/lamp/schema.json").read_text())["x-thresholds"] == {"run": 0.9, "confirm": 0.7, "suggest": 0.4}
    assert run(["data", "check", "data/lamp/train.jsonl", "--json"], debug=True) == 0
    checked = json.loads(capsys.readouterr().out)
    assert "sft" in checked["methods"]


def test_the_same_seed_gives_the_same_bytes(schema):
    for name in ("a", "b"):
        assert run(["synth", "commands", schema, "-o", name, "--rows", "120"], debug=True) == 0
    assert run(["synth", "commands", schema, "-o", "c", "--rows", "120", "--seed", "1"], debug=True) == 0
    assert files("a") == files("b")
    assert files("a")["train.jsonl"] != files("c")["train.jsonl"]


def test_shares_and_splits_are_settings(schema, capsys):
    shares = [f"--share={name}=0" for name in ("context", "clarification", "incomplete", "off-topic")]
    words = ["synth", "commands", schema, "-o", "out", "--rows", "40", "--valid", "0", "--test", "0", "--json", *shares]
    assert run(words, debug=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["cases"] == {"plain": 32, "typo": 8}
    assert "test.jsonl" not in files("out")


def test_what_is_there_stays_unless_forced(schema, capsys):
    assert run(["synth", "commands", schema, "-o", "out", "--rows", "60"], debug=True) == 0
    Path("out/mine.txt").write_text("mine")
    before = files("out")
    assert run(["synth", "commands", schema, "-o", "out", "--rows", "80"], debug=False) == 2
    assert "out/train.jsonl: is there already (--force replaces it)" in capsys.readouterr().err
    assert files("out") == before
    assert run(["synth", "commands", schema, "-o", "out", "--rows", "80", "--test", "0", "--force"], debug=True) == 0
    after = files("out")
    assert after["mine.txt"] == b"mine"
    assert "test.jsonl" not in after
    assert after["train.jsonl"] != before["train.jsonl"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["lamp.yaml", "--share", "typoo=3"], "--share: unknown setting 'typoo' (did you mean 'typo'?)"),
        (["lamp.yaml", "--share", "typo=-3"], "--share: typo: -3"),
        (["lamp.yaml", "--share", "typo=inf"], "shares: a share is not finite"),
        (["lamp.yaml", "--share", "typo"], "'typo' is no assignment"),
        (["lamp.yaml", "--threshold", "run=0.5"], "run, confirm, suggest and 0 must fall"),
        (["lamp.yaml", "--valid", "0.6", "--test", "0.5"], "leave nothing to train on"),
        (["none.yaml"], "none.yaml: cannot read the schema: No such file or directory"),
        ([], "no schema (name a YAML file, or --from-click module:command)"),
        (["--from-click", "nope:cli"], "cannot import 'nope'"),
    ],
)
def test_a_mistake_writes_nothing(schema, capsys, words, line):
    assert run(["synth", "commands", *words, "-o", "out"], debug=False) == 2
    assert line in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["lamp.yaml"]


def test_what_a_program_does_when_it_is_imported_is_told(schema, capsys):
    Path("leaver.py").write_text("raise SystemExit(7)")
    assert run(["synth", "commands", "--from-click", "leaver:cli", "-o", "out"], debug=False) == 2
    assert "cannot import 'leaver': SystemExit: 7" in capsys.readouterr().err
    Path("talker.py").write_text("import click; print('hello')\n@click.command()\n@click.argument('n')\ndef cli(n): 'Count.'")
    assert run(["synth", "commands", "--from-click", "talker:cli", "-o", "out", "--rows", "20", "--json"], debug=False) == 0
    caught = capsys.readouterr()
    assert sum(json.loads(caught.out)["rows"].values()) == 20
    assert "hello" in caught.err


def test_what_to_run_now_names_no_empty_file(schema, capsys):
    assert run(["synth", "commands", schema, "-o", "out", "--rows", "1"], debug=True) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "mlxforge sft" in line]
    assert all(Path(word).stat().st_size for word in line.split() if word.endswith(".jsonl"))


def test_few_requests_are_said(schema, capsys):
    Path("bell.yaml").write_text("cli_name: bell\ncommands: {ring: {help: Ring the bell.}}\n")
    assert run(["synth", "commands", "bell.yaml", "-o", "out", "--rows", "3000", "--json"], debug=True) == 0
    caught = capsys.readouterr()
    short = json.loads(caught.out)["short"]
    assert short["plain"] > 0
    assert "were not to be had without saying one thing twice" in caught.err
    assert "no request of the case 'incomplete'" in caught.err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_folder_and_the_next_one_is_whole(schema, how):
    words = [sys.executable, "-m", "mlxforge", "synth", "commands", schema, "-o", "out", "--rows", "200000"]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    time.sleep(1.5)
    running.send_signal(how)
    running.wait()
    assert not Path("out").exists()
    assert run(["synth", "commands", schema, "-o", "out", "--rows", "50"], debug=True) == 0
    assert run(["synth", "commands", schema, "-o", "again", "--rows", "50"], debug=True) == 0
    assert files("out") == files("again")


@pytest.mark.slow
def test_training_on_the_rows_lowers_the_held_out_loss(schema, capsys):
    assert run(["synth", "commands", schema, "-o", "out", "--rows", "600"], debug=True) == 0
    capsys.readouterr()
    words = ["sft", "-c", "sft-command", "--model", "tiny", "--data", "out/train.jsonl", "--valid", "out/valid.jsonl"]
    words += ["--lora-kind", "full", "--learning-rate", "1e-3", "--steps", "60", "--eval-every", "60", "--batch-tokens", "2048"]
    assert run([*words, "--sample-tokens", "0", "--json"], debug=True) == 0
    result = json.loads(capsys.readouterr().out)
    # 11 nats a token before: the model has never seen JSON.
    assert result["before"]["loss"] > 5
    assert result["valid"]["loss"] < 0.6
