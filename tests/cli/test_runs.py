"""``mlxforge runs``: every verb on whole, live and damaged runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from screens import RESULT, make_run, terminals

from mlxforge.cli.runs import runs
from mlxforge.core.config import to_yaml
from mlxforge.core.errors import MissingExtraError, MlxforgeError, RunError
from mlxforge.core.eventlog import EventLog
from mlxforge.core.files import locked
from mlxforge.core.settings import CptConfig
from mlxforge.runs.record import write_record


@pytest.fixture
def terminal():
    with terminals() as start:
        yield start


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "demo"
    run.mkdir()
    record = {"name": "demo", "objective": "cpt", "status": "finished", "created": 1.79e9, "model": "tiny"}
    write_record(run, {**record, "lineage": {"seed": 3, "model": {"name": "tiny"}}, "result": RESULT})
    (run / "config.yaml").write_text(to_yaml(CptConfig(learning_rate=1e-3)))
    with EventLog(run / "events.jsonl") as log:
        for event in make_run(60, path=str(run)):
            log(event)
    return tmp_path


def call(*words: object):
    return CliRunner().invoke(runs, [str(word) for word in words])


def test_list(folder) -> None:
    (folder / "bad").mkdir()
    (folder / "bad" / "run.json").write_text("{")
    done = call("list", "--runs-dir", folder)
    assert done.exit_code == 0
    assert "demo" in done.stdout
    assert "0.860" in done.stdout
    assert "damaged" in done.stdout
    found = json.loads(call("list", "--runs-dir", folder, "--json").stdout)
    assert {one["name"]: one["status"] for one in found} == {"demo": "finished", "bad": "damaged"}
    assert "no runs" in call("list", "--runs-dir", folder / "none").stdout
    assert json.loads(call("list", "--runs-dir", folder / "none", "--json").stdout) == []


def test_a_narrow_terminal_goes_without_columns_and_keeps_names_whole(folder, terminal) -> None:
    for width, titles in ((90, "run objective status created model steps loss bpb"), (40, "run status steps loss bpb")):
        words = ["runs", "list", "--runs-dir", str(folder)]
        shell = terminal(f"from mlxforge.cli.main import main; main({words!r})", width=width)
        assert shell.wait() == 0
        shown = [line.split() for line in shell.screen() if line.strip()]
        assert shown[0] == titles.split()
        assert shown[1][0] == "demo"


def test_show(folder) -> None:
    text = call("show", "demo", "--runs-dir", folder).stdout
    for wanted in ("demo · cpt · finished", "learning_rate", "0.001", "4.200 → 2.000", "model.name", "events.jsonl"):
        assert wanted in text
    assert "epochs" not in text
    page = json.loads(call("show", "last", "--runs-dir", folder, "--json").stdout)
    assert page["settings"] == {"learning_rate": 0.001}
    assert page["result"] == RESULT


@pytest.mark.parametrize("verb", ["show", "watch", "plot"])
def test_an_unknown_run_is_one_clear_error(folder, verb) -> None:
    done = call(verb, "dmo", "--runs-dir", folder)
    assert isinstance(done.exception, RunError)
    assert "did you mean 'demo'" in str(done.exception)


@pytest.mark.parametrize("verb", ["show", "compare", "watch", "plot", "rm"])
def test_a_checkpoint_where_a_run_is_wanted_is_told(folder, verb) -> None:
    done = call(verb, "run:demo@best", "--runs-dir", folder)
    assert isinstance(done.exception, RunError)
    assert "demo@best: a checkpoint, and this takes whole runs (give 'demo')" in str(done.exception)


def test_a_project_where_nothing_has_begun_is_told(tmp_path, monkeypatch) -> None:
    (tmp_path / "forge.yaml").write_text("ingest: {documents: [d]}\n")
    monkeypatch.chdir(tmp_path)
    for words in (("watch",), ("watch", tmp_path)):
        assert "no run has begun" in str(call(*words).exception)


def test_an_empty_name_to_watch_is_no_project(tmp_path, monkeypatch) -> None:
    (tmp_path / "forge.yaml").write_text("model: tiny\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(call("watch", "").exception, RunError)


def test_a_damaged_record_is_one_clear_error(folder) -> None:
    (folder / "demo" / "run.json").write_text("{")
    assert isinstance(call("show", "demo", "--runs-dir", folder).exception, RunError)
    assert "demo finished" in call("watch", "demo", "--runs-dir", folder).stdout


@pytest.mark.parametrize("key", ["result", "lineage"])
def test_a_record_whose_parts_are_no_objects_is_damaged(folder, key) -> None:
    write_record(folder / "demo", {"objective": "cpt", key: 3})
    for words in (("show", "demo"), ("list", "--tree")):
        done = call(*words, "--runs-dir", folder)
        assert not done.exception or isinstance(done.exception, RunError)


def test_the_gate_of_a_run_says_whom_each_line_is_about(folder) -> None:
    lines = [{"text": "retention.bpb:0.1", "model": model, "passed": model == "a"} for model in ("a", "b")]
    (folder / "demo" / "gate.json").write_text(json.dumps({"passed": False, "requirements": lines}))
    text = call("show", "demo", "--runs-dir", folder).stdout
    assert "gate: failed\n  retention.bpb:0.1  passed  a\n  retention.bpb:0.1  failed  b\n" in text


def test_watch_in_a_pipe_writes_lines(folder) -> None:
    done = call("watch", "demo", "--runs-dir", folder)
    assert done.exit_code == 0
    assert "step 60/60" in done.stdout
    assert "✓ demo finished" in done.stdout


def watching(folder) -> str:
    return f"from mlxforge.cli.main import main; main(['runs', 'watch', 'demo', '--runs-dir', {str(folder)!r}])"


def test_watch_shows_the_last_picture_of_an_ended_run(folder, terminal) -> None:
    watcher = terminal(watching(folder), 100, 40)
    assert watcher.wait() == 0
    screen = "\n".join(watcher.screen())
    for wanted in ("step 60/60", "numbers", "┤", "✓ demo finished", "4.200 → 2.000"):
        assert wanted in screen
    assert b"\x1b[?1049h" not in watcher.written


def test_watch_follows_a_live_run_and_q_leaves_it_alone(folder, terminal) -> None:
    run = folder / "demo"
    events = make_run(30, path=str(run), end=False)
    (run / "events.jsonl").unlink()
    with locked(run), EventLog(run / "events.jsonl") as log:
        for event in events[:20]:
            log(event)
        watcher = terminal(watching(folder), 100, 30)
        watcher.until("leave")
        for event in events[20:]:
            log(event)
        watcher.until("30/30")
        watcher.type("se")
        watcher.type("q")
        assert watcher.wait() == 0
        assert "demo goes on" in "\n".join(watcher.screen())
    assert b"stumbled" not in watcher.written
    assert not any("after this step" in line for line in watcher.screen())


def test_who_stops_watching_in_a_pipe_stops_no_run(folder) -> None:
    run = folder / "demo"
    (run / "events.jsonl").unlink()
    with locked(run), EventLog(run / "events.jsonl") as log:
        for event in make_run(30, path=str(run), end=False):
            log(event)
        with subprocess.Popen([sys.executable, "-uc", watching(folder)], stdout=subprocess.PIPE, text=True) as watcher:
            while "30/30" not in watcher.stdout.readline():
                pass
            watcher.send_signal(signal.SIGINT)
            said = watcher.communicate(timeout=20)[0]
    assert watcher.returncode == 130
    assert "demo goes on" in said


def test_watch_ends_when_the_watched_process_dies(folder, terminal) -> None:
    run = folder / "demo"
    (run / "events.jsonl").unlink()
    with locked(run), EventLog(run / "events.jsonl") as log:
        for event in make_run(30, path=str(run), end=False):
            log(event)
        watcher = terminal(watching(folder), 100, 30)
        watcher.until("30/30")
    assert watcher.wait() == 0
    assert "demo stopped" in "\n".join(watcher.screen())


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_writes_a_picture(folder, suffix) -> None:
    pytest.importorskip("matplotlib")
    out = folder / f"curves.{suffix}"
    assert call("plot", "demo", "--runs-dir", folder, "-o", out).exit_code == 0
    assert out.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_plot_refuses_clearly(folder, monkeypatch) -> None:
    assert isinstance(call("plot", "demo", "--runs-dir", folder, "-o", folder / "x.doc").exception, MlxforgeError)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    missing = call("plot", "demo", "--runs-dir", folder, "-o", folder / "x.png").exception
    assert isinstance(missing, MissingExtraError)
    assert "mlxforge[plot]" in str(missing)
    monkeypatch.undo()
    (folder / "demo" / "events.jsonl").write_text("")
    assert isinstance(call("plot", "demo", "--runs-dir", folder).exception, RunError)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom mlxforge.cli.runs import runs\n"
        "for verb in ([], ['list'], ['show'], ['watch'], ['plot']): runs.main([*verb, '--help'], standalone_mode=False)\n"
        "heavy = {'mlx', 'rich', 'msgspec', 'transformers', 'datasets', 'matplotlib', 'numpy', 'yaml'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_last_is_for_scripts(folder):
    assert call("last", "--runs-dir", folder).output == "demo\n"
    assert call("last", "--runs-dir", folder, "--objective", "cpt").output == "demo\n"
    refused = call("last", "--runs-dir", folder, "--objective", "sft")
    assert isinstance(refused.exception, RunError)
    assert "no finished run of sft" in str(refused.exception)
