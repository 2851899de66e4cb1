"""Retrieval in evaluation: which passages a prompt gets, whether the right one is among them, and what is not known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from mlxforge.cli.main import run
from mlxforge.core.errors import MlxforgeError
from mlxforge.evals.graded import Graded
from mlxforge.evals.metrics import METRICS
from mlxforge.evals.report import load_report
from mlxforge.evals.requirements import read_bound
from mlxforge.knowledge.store import Chunk, Document, open_store
from mlxforge.runs.eval_figures import passage_gains
from mlxforge.runs.eval_job import EvalSettings
from mlxforge.runs.eval_sets import Spec, read_set
from mlxforge.runs.evaluate import evaluate
from mlxforge.runs.rag import conditions

FACTS = {
    "mill": "The mill of Aldmouth was built in 1702 by Cora Vane.",
    "gate": "The gate of Brackwell is green and has two locks.",
    "bell": "The bell of Dunmere rings at noon.",
}


@pytest.fixture
def kb(tmp_path):
    path = tmp_path / "kb.sqlite"
    with open_store(path, create=True) as store, store.writing():
        for name, text in FACTS.items():
            intro = f"About the {name}.\n\n"
            chunks = [Chunk(intro, 4, "", None, 0, len(intro), 0), Chunk(text, 9, name.title(), None, len(intro), 99, 0)]
            store.put(Document(f"/d/{name}.md", "/d", name, name, "markdown", "en", 99, "s", "{}"), chunks)
    return path


def ask(question, answer="Hm.", *, source=None, system=None):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    turns = [{"role": "system", "content": system}, *turns] if system else turns
    return {"messages": turns, **({"source": source} if source else {})}


def of(name, chunk=1):
    return {"document": f"/d/{name}.md", "chunk": chunk}


def opened(tmp_path, kb, *rows, **options):
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {one.name: one for one in conditions([read_set(Spec("q", str(file)))], kb, **options)}


def test_a_question_is_asked_closed_with_what_is_found_and_with_its_own_passage(tmp_path, kb):
    sets = opened(tmp_path, kb, ask("Who built the mill of Aldmouth?", source=of("mill")), top_k=1)
    assert list(sets) == ["q", "q+rag", "q+gold"]
    closed, found, gold = (one.rows[0] for one in sets.values())
    assert (closed.shown_prompt[-1]["content"], closed.context) == ("Who built the mill of Aldmouth?", ())
    for row in (found, gold):
        said = row.shown_prompt[-1]["content"]
        assert FACTS["mill"] in said
        assert said.endswith("Who built the mill of Aldmouth?")
        assert row.context == ({"document": "/d/mill.md", "chunk": 1, "text": FACTS["mill"]},)
        assert row.references == closed.references == ("Hm.",)
    assert (closed.hit, found.hit, gold.hit) == (None, 1.0, None)
    assert len({one.info.hash for one in sets.values()}) == 3
    assert len({one.rows[0].key for one in sets.values()}) == 2  # found and gold are one question to a model


def test_hits_are_counted_among_the_first_k(tmp_path, kb):
    rows = [
        ask("Who built the mill of Aldmouth?", source=of("mill")),
        ask("Is the gate of Brackwell locked when the bell rings?", source=of("bell")),  # which is found second
        ask("The bell of Dunmere", source=of("nowhere")),
        ask("?!", source=of("gate")),  # no word to look for
    ]
    notes = []
    sets = opened(tmp_path, kb, *rows, top_k=1, notes=notes)
    assert [row.hit for row in sets["q+rag"].rows] == [1.0, 0.0, None, 0.0]
    assert [len(row.context) for row in sets["q+rag"].rows] == [1, 1, 1, 0]
    assert "No passage was found." in sets["q+rag"].rows[3].shown_prompt[-1]["content"]
    assert [row.index for row in sets["q+gold"].rows] == [0, 1, 2]
    assert [row.context[0]["document"] for row in sets["q+gold"].rows] == ["/d/mill.md", "/d/bell.md", "/d/gate.md"]
    assert (sets["q+rag"].info.rows, sets["q+gold"].info.rows) == (4, 3)
    assert notes == ["q: 3 of 4 rows name their passage in kb.sqlite ('source' of a row): 'q+gold' and the hits are of these"]
    assert [row.hit for row in opened(tmp_path, kb, *rows, top_k=6)["q+rag"].rows] == [1.0, 1.0, None, 0.0]


def test_gold_is_the_very_passage_that_a_row_names(tmp_path, kb):
    rows = [ask("Who built the mill?", source=of("mill", place)) for place in (0, 1, 2, -1)]
    gold = opened(tmp_path, kb, *rows)["q+gold"]
    assert [row.context[0]["text"] for row in gold.rows] == ["About the mill.", FACTS["mill"]]


def test_without_provenance_there_is_no_gold(tmp_path, kb):
    notes = []
    sets = opened(tmp_path, kb, ask("Who built the mill?"), ask("And the gate?", source="a book"), notes=notes)
    assert list(sets) == ["q", "q+rag"]
    assert {row.hit for row in sets["q+rag"].rows} == {None}
    assert "'q+gold' is left out" in notes[0]


def test_the_last_question_of_a_conversation_is_looked_up(tmp_path, kb):
    row = {"messages": [*ask("The bell?")["messages"], *ask("And who built the mill?", source=of("mill"))["messages"]]}
    found = opened(tmp_path, kb, row, top_k=1)["q+rag"].rows[0]
    assert found.context[0]["document"] == "/d/mill.md"
    assert found.shown_prompt[0]["content"] == "The bell?"


def test_a_prompt_of_the_users_own_replaces_the_shipped_one(tmp_path, kb):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "rag.md").write_text("Be brief.\n---\n{question}\n\nHints:\n{passages}")
    rows = [ask("Who built the mill?"), ask("Who built the mill?", system="You are a miller.")]
    one, other = opened(tmp_path, kb, *rows, top_k=1, prompts=folder)["q+rag"].rows
    assert [turn["role"] for turn in one.shown_prompt] == ["system", "user"]
    assert one.shown_prompt[0]["content"] == "Be brief."
    assert one.shown_prompt[1]["content"] == f"Who built the mill?\n\nHints:\n[1] Mill\n{FACTS['mill']}"
    assert other.shown_prompt[0]["content"] == "You are a miller.\n\nBe brief."
    (folder / "rag.md").write_text("{passages}")
    with pytest.raises(MlxforgeError, match=r"rag.md: no place for \{question\}"):
        opened(tmp_path, kb, *rows, prompts=folder)


def test_choices_are_asked_with_passages_too(tmp_path, kb):
    row = {"question": "Who built the mill?", "choices": ["Cora Vane", "Nobody"], "answer": 0, "source": of("mill")}
    sets = opened(tmp_path, kb, row, top_k=1)
    assert {one.kind for one in sets.values()} == {"choices"}
    assert FACTS["mill"] in sets["q+gold"].rows[0].prompt.messages[-1].content
    assert sets["q+gold"].rows[0].answers == sets["q"].rows[0].answers


def test_the_report_has_all_three_and_the_hits(tmp_path, kb, capsys):
    file = tmp_path / "q.jsonl"
    rows = [ask("Who built the mill of Aldmouth?", "Cora Vane.", source=of("mill")), ask("The bell?", "Noon.")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "a=tiny", "-d", str(file), "--rag", str(kb), "--top-k", "1", "-o", str(tmp_path / "report")]
    assert run([*words, "--no-retention", "--metrics", "exact_match,rag", "--max-tokens", "4"], debug=False) == 0
    assert "q+rag  retrieval_hit" in capsys.readouterr().out
    report = load_report(tmp_path / "report")
    assert [(one.name, one.rows) for one in report.sets] == [("q", 2), ("q+rag", 2), ("q+gold", 1)]
    hit = report.results["a"]["q+rag"]["retrieval_hit"]
    assert (hit.value, hit.n) == (1.0, 1)
    assert "retrieval_hit" not in report.results["a"]["q"]
    assert "retrieval_hit" not in report.results["a"]["q+gold"]
    assert any("1 of 2 rows name their passage" in note for note in report.notes)
    assert read_bound("a.q+rag.exact_match>=0", report).path == ("a", "q+rag", "exact_match")
    lines = [json.loads(line) for line in (tmp_path / "report" / "rows.jsonl").read_text().splitlines()]
    assert [line["context"] and line["context"][0]["document"] for line in lines if line["set"] == "q+rag"] == [
        "/d/mill.md",
        "/d/bell.md",
    ]
    # Without any provenance the figure says why it is none.
    file.write_text(json.dumps(rows[1]) + "\n")
    assert run([*words, "--no-retention", "--metrics", "rag"], debug=False) == 0
    none = load_report(tmp_path / "report").results["a"]["q+rag"]["retrieval_hit"]
    assert (none.value, none.why) == (None, "no row names the passage it was made from")


def test_what_passages_are_worth_is_told_with_the_paired_test():
    """Three of four become right: all rows that differ differ in one way, 2 of the 8 ways to swap them. Gold has other rows."""
    right, wrong = (Graded(answer=text, references=("Noon.",)) for text in ("noon", "never"))
    graded = {"q": [wrong] * 4, "q+rag": [right, right, right, wrong], "q+gold": [right] * 3}
    job = SimpleNamespace(
        sets=[SimpleNamespace(name=name) for name in graded],
        metrics={name: [METRICS["f1"], METRICS["exact_match"]] for name in graded},
        graded={"sft": graded},
        settings=SimpleNamespace(seed=0),
    )
    (told,) = passage_gains(job)
    assert told == ("sft, q: exact match 0.000 closed book, 0.750 with passages found (p=0.250), 1.000 with its own passage")


def test_prompts_that_leave_no_room_are_counted(tmp_path, kb):
    with open_store(kb) as store, store.writing():
        text = "The mill of Aldmouth. " * 900
        store.put(Document("/d/long.md", "/d", "l", "l", "markdown", "en", 99, "s", "{}"), [Chunk(text, 9, "", None, 0, 9, 0)])
    (tmp_path / "q.jsonl").write_text(json.dumps(ask("The mill of Aldmouth?")) + "\n")
    given = {"data": [str(tmp_path / "q.jsonl")], "rag": kb, "retention": "", "metrics": ["f1"], "max_tokens": 4}
    report = evaluate(EvalSettings(models=["a=tiny"], output=tmp_path / "report", **given))
    assert "a, q+rag: 1 of 1 prompts fill the model's context (fewer passages: --top-k)" in report.notes
    assert not any("a, q: 1 of 1 prompts" in note for note in report.notes)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--top-k", "3"], "--top-k needs --rag"),
        (["--prompts", "."], "--prompts needs --rag"),
        (["--rag", "none.sqlite"], "no knowledge base here"),
        (["--rag", "KB", "--top-k", "0"], "--top-k"),
        (["--rag", "KB", "--prompts", "none"], "no such folder"),
        (["--rag", "EMPTY"], "no chunks"),
        (["--rag", "KB", "-d", "q+rag=Q"], "a set is named 'q+rag' already"),
        (["--rag", "KB", "--metrics", "win_rate"], "needs a judge"),
    ],
)
def test_what_cannot_be_looked_up_is_refused_in_one_line(words, says, tmp_path, kb, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(ask("Who built the mill?")) + "\n")
    with open_store(tmp_path / "empty.sqlite", create=True):
        pass
    places = {"KB": str(kb), "EMPTY": "empty.sqlite", "q+rag=Q": "q+rag=q.jsonl"}
    line = ["eval", "tiny", "-d", "q.jsonl", "--no-retention", "-o", "report", *(places.get(word, word) for word in words)]
    assert run(line, debug=False) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "report").exists()


def test_a_text_asks_nothing(tmp_path, kb, capsys):
    (tmp_path / "a.txt").write_text("The mill.")
    line = ["eval", "tiny", "-d", str(tmp_path / "a.txt"), "--rag", str(kb), "-o", str(tmp_path / "report")]
    assert run(line, debug=False) == 2
    assert "no set asks questions" in capsys.readouterr().err
