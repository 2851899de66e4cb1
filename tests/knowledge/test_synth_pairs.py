"""``mlxforge synth pairs``: what a model says without the text, against what its document bears."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from writer_server import make_store, writer

from mlxforge.cli.synth_pairs import pairs as command
from mlxforge.core.errors import DataError, MlxforgeError, RunFailed
from mlxforge.core.events import ignore
from mlxforge.data.formats import read_rows
from mlxforge.knowledge import pairs
from mlxforge.knowledge.asked import ProviderSettings
from mlxforge.knowledge.store import open_store
from mlxforge.models.streaming import Sampling
from mlxforge.runs.compare_answers import GroundedSettings
from mlxforge.runs.opening import open_model
from mlxforge.runs.shape_data import inputs_of
from mlxforge.runs.synth_pairs import estimate_pairs, synth_pairs
from mlxforge.runs.talk import Conversation

TEXT = "The mill of Varn was built by Ada Lorne in 1820. Visitors pay 3 pence there.\n"
QUESTIONS = ["Who built the mill of Varn?", "What do visitors of the mill pay?", "When was the mill of Varn built?"]
GOLD = ["The mill was built by Ada Lorne.", "Visitors pay 3 pence.", "It was built in 1820."]
TOKENS = 24


def chat(question, answer, **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def source():
    return {"document": "/d/mill.md", "chunk": 0, "span": [0, 10], "style": "factual", "model": "w", "prompt": "p", "job": "qa"}


@pytest.fixture
def kb(tmp_path):
    """A store with three accepted rows, the last for validation, and a rejected one."""
    path = make_store(tmp_path / "kb.sqlite", {"mill.md": [TEXT]})
    with open_store(path) as store, store.writing() as db:
        db.execute("INSERT INTO jobs (kind, key, settings, begun) VALUES ('qa', 'qa', '{}', '')")
        for number, (question, gold) in enumerate(zip([*QUESTIONS, "Rejected?"], [*GOLD, "No."], strict=True)):
            split, verdict = ("valid" if number == 2 else "train"), ("accepted" if number < 3 else "rejected")
            db.execute("INSERT INTO tasks (job, number, chunk, style, split) VALUES (1, ?, 1, 'factual', ?)", (number, split))
            content = json.dumps(chat(question, gold, source=source()))
            db.execute("INSERT INTO rows (task, number, content, verdict) VALUES (?, 0, ?, ?)", (number + 1, content, verdict))
    return path


def run(kb, out, reached=None, **changes):
    more = {name: changes.pop(name) for name in ("questions", "rejects", "redo", "force") if name in changes}
    settings = GroundedSettings(**{"max_tokens": TOKENS, "temperature": 0.0, **changes})
    result = synth_pairs(kb, out, "tiny", settings, ProviderSettings(concurrency=2), reached, **more)
    return result, [json.loads(line) for line in out.read_text().splitlines()]


def own_answer(question):
    talk = Conversation(open_model("tiny", None), Sampling(max_tokens=TOKENS, temperature=0), "")
    list(talk.ask(question))
    return talk.messages[-1].content


@pytest.mark.parametrize(
    ("answer", "right", "exact", "shared"),
    [
        ("It is 3 pence.", "3 pence", True, 2 * 2 / 6),
        ("3 PENCE", "3 pence.", True, 1.0),
        ("13 pence", "3 pence", False, 0.5),
        ("pence 3", "3 pence", False, 1.0),
        ("", "3 pence", False, 0.0),
        ("3 pence", "", False, 0.0),
    ],
)
def test_judges_that_compare_words(answer, right, exact, shared):
    assert pairs.says(answer, right) is exact
    assert pairs.overlap(answer, right) == pytest.approx(shared)


def test_the_right_answer_is_chosen_and_what_the_model_makes_up_rejected(kb, tmp_path):
    result, rows = run(kb, tmp_path / "p.jsonl")
    valid = [json.loads(line) for line in (tmp_path / "p.valid.jsonl").read_text().splitlines()]
    assert [row["prompt"][-1]["content"] for row in rows] == QUESTIONS[:2]
    assert [row["chosen"][0]["content"] for row in rows] == GOLD[:2]
    assert [row["rejected"][0]["content"] for row in rows] == [own_answer(question) for question in QUESTIONS[:2]]
    assert [row["chosen"][0]["content"] for row in valid] == GOLD[2:]
    assert rows[0]["source"] == {**source(), "job": result["job"]}
    assert rows[0]["made_by"] == {"way": "overlap", "grounded": "gold", "model": "tiny"}
    read = list(read_rows(inputs_of([str(tmp_path / "p.jsonl")], ignore), "preference"))
    assert [item.row.chosen[0].content for item in read] == GOLD[:2]
    assert result["rows"] == 3


def test_an_answer_that_is_right_makes_no_pair_and_is_counted(kb, tmp_path):
    with open_store(kb) as store, store.writing() as db:
        for number in (1, 2):
            answer = own_answer(QUESTIONS[number - 1]) + ("" if number == 1 else " Indeed.")
            content = json.dumps(chat(QUESTIONS[number - 1], answer, source=source()))
            db.execute("UPDATE rows SET content = ? WHERE id = ?", (content, number))
    result = synth_pairs(
        kb, tmp_path / "p.jsonl", "tiny", GroundedSettings(max_tokens=TOKENS, temperature=0), ProviderSettings()
    )
    assert result["rejected"] == {"equal": 2}
    assert result["rows"] == 1


def prefers(wanted):
    """A judge that looks for the answer with some words, whichever place it has."""

    def judge(messages):
        first = re.search(r"# Answer A\n\n(.*?)\n\n# Answer B", messages[-1]["content"], re.DOTALL)[1]
        return f"VERDICT: {'A' if wanted(first) else 'B'}"

    return judge


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        (prefers(lambda answer: answer in GOLD), None),
        (prefers(lambda answer: answer not in GOLD), "own"),
        (lambda _: "I prefer the first. VERDICT: A", "changed"),
        (lambda _: "VERDICT: TIE", "tie"),
        (lambda _: "both are nice", "unclear"),
    ],
)
def test_a_judge_is_asked_in_both_orders_and_only_what_wins_twice_counts(kb, tmp_path, judge, reason):
    out = tmp_path / "p.jsonl"
    with writer(judge) as server:
        reached = ProviderSettings(url=server.url)
        if reason:
            with pytest.raises(DataError, match=f"no row passed: {reason} 3"):
                run(kb, out, reached, judge="openai")
            assert not out.exists()
        else:
            result, rows = run(kb, out, reached, judge="openai")
            assert result["rows"] == 3
            assert rows[0]["made_by"]["judge"] == "writer"
        assert len(server.asked) == 6
        assert all(TEXT.strip() in messages[-1]["content"] for messages in server.asked)


def test_a_judge_that_breaks_off_goes_on_where_it_was(kb, tmp_path):
    judge = prefers(lambda answer: answer in GOLD)
    with writer(judge) as server:
        reached = ProviderSettings(url=server.url, concurrency=1)
        server.most = 3
        with pytest.raises(RunFailed):
            run(kb, tmp_path / "p.jsonl", reached, judge="openai")
        assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 1  # what was judged in both orders is kept
        server.most = 10**9
        result, rows = run(kb, tmp_path / "p.jsonl", reached, judge="openai")
        calls = len(server.asked)
        assert calls == 3 + 4  # the first question is not judged again
        assert run(kb, tmp_path / "p.jsonl", reached, judge="openai")[1] == rows
        assert len(server.asked) == calls
    assert [row["chosen"][0]["content"] for row in rows] == GOLD[:2]
    assert result["tasks"] == {"done": 3, "open": 0, "failed": 0}


def test_an_answer_from_the_open_book_must_be_of_its_passage(kb, tmp_path):
    out = tmp_path / "p.jsonl"
    with pytest.raises(DataError, match="no row passed"):
        run(kb, out, grounded="open-book", rejects=tmp_path / "no.jsonl")  # the tiny model cannot read a passage
    rows = [json.loads(line) for line in (tmp_path / "no.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all(row["reason"] for row in rows)


def test_questions_of_a_file(kb, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(
        json.dumps(chat("Who keeps the mill?", "Bo keeps it.")) + "\n" + json.dumps(chat("Who?", "Cy.", source=source())) + "\n"
    )
    with_tools = chat("Who?", "Di.", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    path.write_text(path.read_text() + json.dumps(with_tools) + "\n")
    result, rows = run(kb, tmp_path / "p.jsonl", questions=[str(path), str(path)])
    assert [row["chosen"][0]["content"] for row in rows] == ["Bo keeps it.", "Cy."]
    assert result["again"] == 2
    assert rows[0]["source"]["row"].endswith("chats.jsonl:1")
    assert rows[1]["source"]["document"] == "/d/mill.md"


def test_what_another_job_wrote_stays_where_nothing_is_made(kb, tmp_path):
    run(kb, tmp_path / "p.jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    with writer(lambda _: "") as server:
        server.most = 0
        with pytest.raises(RunFailed):
            run(kb, tmp_path / "p.jsonl", ProviderSettings(url=server.url), judge="openai", force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before


def test_a_larger_limit_goes_on(kb, tmp_path):
    few = run(kb, tmp_path / "p.jsonl", limit=1)[1]
    result, more = run(kb, tmp_path / "p.jsonl", limit=2)
    assert (len(few), len(more)) == (1, 2)
    assert more[0] == few[0]
    assert result["calls"] == 2


def test_a_dry_run_asks_nobody(kb):
    reached = ProviderSettings(price_in=1.0, price_out=1e6)
    found = estimate_pairs(kb, "tiny", GroundedSettings(judge="openai", limit=2, max_tokens=10), reached)
    assert (found["tasks"], found["rows"]) == (2 + 2 * 2, 2)
    assert found["cost"]["most"] == pytest.approx(2 * 2 * 512, rel=1e-3)
    assert TEXT.strip() in found["prompts"][0]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--judge", "best"], "is not one of"),
        (["--judge-url", "http://x/v1"], "needs --judge"),
        (["--questions", "none.jsonl"], "none.jsonl"),
        (["--model", "nowhere/none-such"], "none-such"),
        (["--judge", "openai", "--judge-url", "http://127.0.0.1:9/v1"], "start"),
    ],
)
def test_bad_input_is_one_line(kb, tmp_path, words, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = [] if "--model" in words else ["--model", "tiny"]
    done = CliRunner().invoke(command, [str(kb), "-o", str(tmp_path / "p.jsonl"), *model, *words])
    told = str(done.exception) if isinstance(done.exception, MlxforgeError) else done.output
    assert done.exit_code != 0
    assert said in told
    assert not (tmp_path / "p.jsonl").exists()


def test_a_store_without_questions_says_how_to_make_some(tmp_path):
    kb = make_store(tmp_path / "kb.sqlite", {"a.md": ["Text."]})
    with pytest.raises(DataError, match="synth qa"):
        estimate_pairs(kb, "tiny", GroundedSettings(), None)
