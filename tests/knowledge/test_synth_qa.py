"""``synth qa`` whole, against real servers and the tiny model: rows with their source, and a job that survives its end."""

from __future__ import annotations

import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bad_server import serving_badly

from mlxforge.core.errors import ConfigError, DataError
from mlxforge.core.events import Noted
from mlxforge.core.files import embedded
from mlxforge.knowledge.asked import CostReached, ProviderSettings
from mlxforge.knowledge.store import Chunk, Document, open_store
from mlxforge.knowledge.templates import PROMPTS
from mlxforge.runs.synth import estimate, synth_qa
from mlxforge.runs.synth_rows import QaSettings

TOWNS = "Aldmouth Pothmouth Brackwell Cindervale Dunmere Eastwick Fallowby Gorsham Hexley Ironby Jarrow Kelby".split()
FACTUAL = ("factual",)


def text_of(town: str, number: int) -> list[str]:
    return [
        f"The mill of {town} stands by the river and was built in {1700 + number}. Its keeper {town}son counts sacks.\n\n",
        f"The gate of {town} is green, closed by {number % 9} watchmen. A lantern of {town} hangs above its arch.\n\n",
    ]


@pytest.fixture
def kb(tmp_path):
    path = tmp_path / "kb.sqlite"
    with open_store(path, create=True) as store, store.writing():
        for number, town in enumerate(TOWNS):
            place, chunks = 0, []
            for text in text_of(town, number):
                chunks.append(Chunk(text, 30, town, None, place, place + len(text), 0))
                place += len(text)
            store.put(Document(f"/d/{town}.md", "/d", town, town, "markdown", "en", place, "s", "{}"), chunks)
    return path


@pytest.fixture
def server():
    with serving_badly() as started:
        yield started


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(kb, server, output="out.jsonl", changes=None, reached=None, **options):
    settings = QaSettings(
        **{"styles": FACTUAL, "per_chunk": 2, "provider": "openai", "valid": 0.2, "test": 0.2, **(changes or {})}
    )
    there = ProviderSettings(url=server.url, **(reached or {}))
    result = synth_qa(kb, kb.parent / output, settings, there, **options)
    return result, [row for file in result["files"].values() for row in read(Path(file))]


def command(kb, server, *options):
    line = ["synth", "qa", str(kb), "-o", str(kb.parent / "out.jsonl"), "--provider", "openai", "--url", server.url]
    code = "from mlxforge.cli.main import main; import sys; main(sys.argv[1:])"
    return [sys.executable, "-c", code, *line, "--styles", "factual", "--per-chunk", "2", *options]


def test_rows_tell_their_source_and_documents_stay_together(kb, server):
    result, rows = make(kb, server, rejects=kb.parent / "rejects.jsonl")
    assert (len(rows), result["tasks"]) == (48, {"done": 24, "open": 0, "failed": 0})
    texts = {f"/d/{town}.md": "".join(text_of(town, number)) for number, town in enumerate(TOWNS)}
    parts = {}
    for part, file in result["files"].items():
        for row in read(Path(file)):
            source, (asked, said) = row["source"], row["messages"]
            assert parts.setdefault(source["document"], part) == part
            begin, end = source["span"]
            assert texts[source["document"]][begin:end] == said["content"].rstrip(".")
            assert asked["content"].startswith("What is known of ")
            assert source.keys() >= {"document", "chunk", "span", "style", "model", "prompt", "job", "quote"}
            assert (source["style"], source["model"], source["job"]) == ("factual", "writer", result["job"])
    assert set(parts.values()) == {"train", "valid", "test"}
    assert sorted(result["files"]) == ["test", "train", "valid"]
    assert read(kb.parent / "rejects.jsonl") == []
    # Nothing is left to ask: the same command writes the same files.
    before, server.always = (kb.parent / "out.jsonl").read_bytes(), "500"
    assert make(kb, server, rejects=kb.parent / "rejects.jsonl")[0]["calls"] == 24
    assert (kb.parent / "out.jsonl").read_bytes() == before


def test_rejects_are_kept_with_their_reason(kb, server):
    server.plan += ["", "wrong schema", "prose", "too long"]
    result, rows = make(kb, server, rejects=kb.parent / "no.jsonl", reached={"concurrency": 1})
    assert result["rejected"] == {"schema": 2}
    told = [(row["gate"], row["reason"]) for row in read(kb.parent / "no.jsonl")]
    assert told == [("schema", "no key 'question'"), ("schema", "no JSON")]
    assert result["tasks"]["failed"] == 1
    assert len(rows) == 48 - 6


def test_equal_questions_are_duplicates_over_all_parts(kb, server):
    result, rows = make(kb, server, changes={"per_chunk": 4})
    assert len(rows) == 48  # two sentences a chunk
    assert result["rejected"] == {"duplicate": 48}


def test_a_larger_limit_goes_on_and_redo_begins_anew(kb, server):
    assert len(make(kb, server, changes={"limit": 6})[1]) == 6
    result, rows = make(kb, server, changes={"limit": 10})
    assert (len(rows), result["calls"], len(server.seen)) == (10, 5, 5)
    assert max(server.asked().values()) == 1
    assert make(kb, server, changes={"limit": 10}, redo=True)[0]["calls"] == 5
    assert set(server.asked().values()) == {2}
    with pytest.raises(DataError, match="is there already"):
        make(kb, server, changes={"seed": 1})


def test_a_smaller_limit_writes_all_that_is_made_and_says_so(kb, server):
    told = []
    make(kb, server, changes={"limit": 10})
    result, rows = make(kb, server, changes={"limit": 4}, emit=told.append)
    assert (len(rows), result["calls"]) == (10, 5)
    assert "--limit 4 asks for less than the job has" in " ".join(event.message for event in told if isinstance(event, Noted))


def test_a_ceiling_keeps_what_is_made_and_goes_on_when_raised(kb, server):
    prices = {"price_in": 1.0, "price_out": 10.0}
    with pytest.raises(CostReached) as caught:
        make(kb, server, reached=prices, max_cost=0.03)
    result = caught.value.result
    assert 0.015 < result["cost"] <= 0.03
    assert 0 < result["tasks"]["done"] < 24
    assert len(read(kb.parent / "out.jsonl")) == result["rows"]["train"]
    assert len(make(kb, server, reached=prices, max_cost=5.0)[1]) == 48
    assert max(server.asked().values()) == 1


def test_what_another_job_wrote_stays_where_nothing_is_made(kb, server):
    make(kb, server)
    before = (kb.parent / "out.jsonl").read_bytes()
    with pytest.raises(CostReached):
        make(kb, server, changes={"seed": 1}, reached={"price_in": 1.0, "price_out": 1.0}, max_cost=1e-6, force=True)
    assert (kb.parent / "out.jsonl").read_bytes() == before


def test_a_judge_scores_what_passed(kb, server):
    server.score = 3
    with pytest.raises(DataError, match="no row passed: judge 8"):
        make(kb, server, changes={"judge": "openai", "limit": 8})
    server.score = 5
    _, rows = make(kb, server, changes={"judge": "openai", "limit": 8}, redo=True)
    assert len(rows) == 8
    assert rows[0]["source"]["judge"] == {"model": "writer", "reason": "It is as the passage says.", "score": 5}


def law(kb, server):
    """Every task done once, every row once, and as one undisturbed run makes them."""
    with sqlite3.connect(kb) as connection:
        assert connection.execute("SELECT count(*), sum(attempts) FROM tasks WHERE state = 'done'").fetchone() == (24, 24)
        assert connection.execute("SELECT count(*), count(DISTINCT content) FROM rows").fetchone() == (48, 48)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = [row for name in ("out.jsonl", "out.valid.jsonl", "out.test.jsonl") for row in read(kb.parent / name)]
    assert len({json.dumps(row["messages"]) for row in rows}) == len(rows) == 48
    assert not list(kb.parent.glob(".*unfinished"))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_killed_at_any_moment_it_goes_on(kb, server, seed):
    server.delay, chance = 0.05, random.Random(seed)
    line, kills = command(kb, server, "--concurrency", "3", "--valid", "0.2", "--test", "0.2"), 0
    while True:
        asked = len(server.seen)
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            end = asked + chance.randint(0, 9)
            while process.poll() is None and len(server.seen) <= end:
                time.sleep(0.005)
            if process.poll() is None and kills < 3:
                time.sleep(chance.random() * 0.06)
                process.send_signal(signal.SIGKILL)
                kills += 1
                continue
            _, told = process.communicate(timeout=60)
            assert process.returncode == 0, told
            break
    assert kills == 3
    law(kb, server)
    assert len(server.seen) <= 24 + 3 * kills  # only what was under way is asked again


def test_a_second_process_is_refused_while_the_first_works_at_the_job(kb, server):
    server.delay = 0.2
    line = command(kb, server, "--concurrency", "1", "--valid", "0.2", "--test", "0.2")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        while first.poll() is None and len(server.seen) < 2:
            time.sleep(0.01)
        second = subprocess.run(line, capture_output=True, text=True)
        assert first.poll() is None
        server.delay = 0
        _, told = first.communicate(timeout=60)
    assert first.returncode == 0, told
    said = f"error: {kb}: another process works at this job (wait for it or stop it)\n"
    assert (second.returncode, second.stderr.endswith(said)) == (2, True), second.stderr
    assert len(server.seen) == 24
    law(kb, server)
    assert not list(kb.parent.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_it_writes_what_it_has_and_goes_on(kb, server, number):
    server.delay = 0.1
    line = command(kb, server, "--concurrency", "2", "--valid", "0.2", "--test", "0.2")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(server.seen) < 12:
            time.sleep(0.01)
        process.send_signal(number)
        said, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.splitlines()[-1].endswith(" (the same command goes on)")
    assert "Traceback" not in told
    made = len(read(kb.parent / "out.jsonl"))
    assert f"{made} rows for train" in said
    server.delay = 0
    assert subprocess.run(line, capture_output=True).returncode == 0
    law(kb, server)


def test_the_key_is_nowhere(kb, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    server.plan += [""] * 4 + ["key"]
    done = subprocess.run(command(kb, server, "--concurrency", "1"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "status 401: wrong Bearer …" in done.stderr
    assert done.stderr.count("\n") < 6
    kept = b"".join(path.read_bytes() for path in kb.parent.iterdir() if path.is_file())
    assert b"sk-secret" not in kept + (done.stdout + done.stderr).encode()
    assert server.seen[0][1]["Authorization"] == "Bearer sk-secret-1"


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--styles", "factul"], 2, "unknown style 'factul' (did you mean 'factual'?)"),
        (["--styles", "factual,factual"], 2, "each style once"),
        (["--provider", "openia"], 2, "unknown provider 'openia' (did you mean 'openai'?)"),
        (
            ["--provider", "openai", "--url", "http://127.0.0.1:9/v1"],
            2,
            "http://127.0.0.1:9/v1: no answer: Connection refused (start",
        ),
        (["--provider", "openai"], 2, "OPENAI_BASE_URL"),
        (["--provider", "mlx"], 2, "no model"),
        (["--max-cost", "1"], 2, "--max-cost needs --price-in and --price-out"),
        (["--valid", "0.5", "--test", "0.5"], 2, "leave nothing to train on"),
        (["--prompts", "nowhere"], 2, "mlxforge synth prompts nowhere"),
        *((option, 2, "is no finite number") for option in (["--valid", "nan"], ["--near", "nan"], ["--max-cost", "inf"])),
    ],
)
def test_what_cannot_be_done_is_one_line(kb, options, code, told, capsys, monkeypatch):
    from mlxforge.cli.main import run

    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert run(["synth", "qa", str(kb), "-o", str(kb.parent / "out.jsonl"), *options], debug=False) == code
    said = capsys.readouterr().err
    assert told in said
    assert not list(kb.parent.glob("*.jsonl"))
    with open_store(kb) as store:
        assert store.rows("SELECT * FROM jobs") == []


def test_prompts_are_copied_changed_and_used(kb, capsys):
    from mlxforge.cli.main import run

    folder = kb.parent / "mine"
    assert run(["synth", "prompts", str(folder)], debug=False) == 0
    assert {file.name for file in folder.iterdir()} == {file.name for file in PROMPTS.glob("*.md")}
    assert run(["synth", "prompts", str(folder)], debug=False) == 2
    assert "is there already" in capsys.readouterr().err
    (folder / "factual.md").write_text("Ask of {title}, {cuont} times: {passage}")
    line = ["synth", "qa", str(kb), "-o", "x.jsonl", "--model", "tiny", "--prompts", str(folder), "--dry-run"]
    assert run(line, debug=False) == 2
    assert f"{folder}/factual.md:1: no value for {{cuont}}" in capsys.readouterr().err
    assert run(["synth", "prompts", str(folder), "--force"], debug=False) == 0
    (folder / "factual.md").write_text("Ask of {title}, {count} times: {passage}")
    assert run(line, debug=False) == 0
    assert "Ask of " in capsys.readouterr().out
    (folder / "factual.md").write_text("For {audience}.\n---\nAsk {count} times: {passage}")
    assert run(line, debug=False) == 2
    assert f"{folder}/factual.md:1: {{audience}} is filled below the --- only" in capsys.readouterr().err
    (folder / "factual.md").rename(folder / "factaul.md")  # the shipped one would be used in its place
    assert run(line, debug=False) == 2
    assert "did you mean 'factual.md'?" in capsys.readouterr().err
    (kb.parent / "file").touch()
    assert run(["synth", "prompts", str(kb.parent / "file")], debug=False) == 2


def test_a_dry_run_asks_nobody(kb, server, capsys):
    from mlxforge.cli.main import run

    line = ["synth", "qa", str(kb), "-o", "x.jsonl", "--provider", "openai", "--url", server.url, "--price-in", "1"]
    assert run([*line, "--price-out", "10", "--dry-run", "--json"], debug=False) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tasks"], found["rows"], len(found["prompts"]), server.seen) == (72, 72, 3, [])
    assert all("<passage>\nThe " in prompt["messages"][1]["content"] for prompt in found["prompts"])
    assert found["cost"]["most"] > found["cost"]["expected"] > 0
    assert found["cost"]["most"] == pytest.approx(
        found["prompt_tokens"] / 1e6 + found["completion_tokens"]["most"] / 1e5, abs=1e-3
    )
    settings = QaSettings(styles=FACTUAL, limit=3)
    assert estimate(kb, settings, ProviderSettings())["rows"] == 3


@pytest.mark.slow
def test_the_tiny_model_in_process_makes_rows_that_are_whole(kb):
    settings = QaSettings(styles=FACTUAL, limit=4, per_chunk=1, temperature=1.0)
    with pytest.raises(DataError, match="no row passed"):
        synth_qa(kb, kb.parent / "o.jsonl", settings, ProviderSettings(model="tiny"), rejects=kb.parent / "no.jsonl")
    rows = read(kb.parent / "no.jsonl")
    assert len(rows) == 4
    assert {row["gate"] for row in rows} <= {"subject", "grounded", "reference", "duplicate"}  # never schema or length


@pytest.fixture
def mlx_lm_server():
    """mlx-lm's own server with the tiny model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "mlx_lm", "server", "--model", str(embedded("data", "tiny")), "--port", str(port)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def test_mlx_lms_own_server_is_asked_to_the_end(kb, mlx_lm_server):
    settings = QaSettings(styles=("unanswerable",), limit=2, per_chunk=1, provider="openai")
    reached = ProviderSettings(url=mlx_lm_server, model=str(embedded("data", "tiny")))
    with pytest.raises(DataError, match="no row passed"):
        synth_qa(kb, kb.parent / "o.jsonl", settings, reached, rejects=kb.parent / "no.jsonl")
    rejected = read(kb.parent / "no.jsonl")
    with open_store(kb) as store:
        (job,) = store.rows("SELECT * FROM jobs")
        states = [row["state"] for row in store.rows("SELECT state FROM tasks")]
    assert len(states) == 2
    assert "open" not in states
    assert len(rejected) == states.count("done")
    assert (job["calls"], job["prompt_tokens"] > 300, job["completion_tokens"] > 10) == (2, True, True)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'socratic'"):
        QaSettings(styles=("socratik",))
    with pytest.raises(ConfigError, match="--judge"):
        QaSettings(judge="human")
