"""``mlxforge synth review``: what a person says is kept at once, and training keeps to it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest
from click.testing import CliRunner
from screens import terminals

from mlxforge.cli.synth_review import review
from mlxforge.core.errors import MlxforgeError
from mlxforge.core.events import ignore
from mlxforge.data.formats import read_rows
from mlxforge.data.readers import Reading
from mlxforge.knowledge.store import Chunk, Document, open_store
from mlxforge.runs.review import open_review
from mlxforge.runs.shape_data import inputs_of

TEXT = "The mill was built in 1820. Ada keeps it.\n"


def chat(question, answer, **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def source(span=(28, 41)):
    return {"document": "/d/mill.md", "chunk": 0, "span": list(span), "style": "factual", "model": "m", "job": "k"}


@pytest.fixture
def kb(tmp_path):
    """A knowledge base with one chunk and four rows: two accepted, two rejected by gates."""
    path = tmp_path / "kb.sqlite"
    with open_store(path, create=True) as store, store.writing() as db:
        document = Document("/d/mill.md", "/d", "h", "mill", "markdown", "en", len(TEXT), "s", "{}")
        store.put(document, [Chunk(TEXT, 12, "Mill", 3, 0, len(TEXT), 0)])
        db.execute("INSERT INTO jobs (kind, key, settings, begun) VALUES ('qa', 'k', '{}', '')")
        db.execute("INSERT INTO tasks (job, number, chunk, style, split) VALUES (1, 0, 1, 'factual', 'train')")
        for number, gate in enumerate([None, "grounded", None, "length"]):
            content = json.dumps(chat(f"Question {number}?", "Ada keeps it.", source=source()))
            verdict, reason = ("rejected", "it says nothing of the mill") if gate else ("accepted", None)
            db.execute(
                "INSERT INTO rows (task, number, content, verdict, gate, reason) VALUES (1, ?, ?, ?, ?, ?)",
                (number, content, verdict, gate, reason),
            )
    return path


@pytest.fixture
def rows(tmp_path):
    """Four rows, the second with odd spaces, the last without a line end."""
    path = tmp_path / "sft.jsonl"
    lines = [json.dumps(chat(f"Question {number}?", "Ada.", source=source())) for number in range(4)]
    lines[1] = lines[1].replace(": ", " :  ")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def terminal():
    with terminals() as start:
        yield start


def code(*words):
    return f"from mlxforge.cli.main import main\nmain(['synth', 'review', *{[str(word) for word in words]!r}])"


def verdicts(kb):
    with open_store(kb) as store:
        return [tuple(row.values()) for row in store.rows("SELECT verdict, gate, reviewed FROM rows ORDER BY id")]


def test_what_is_said_of_a_file_is_marked_and_all_else_keeps_its_bytes(rows):
    before = rows.read_text().split("\n")
    with open_review(rows) as sitting:
        assert len(sitting) == 4
        sitting.say(0, "accept")
        sitting.say(2, "reject")
        assert sitting.edit(3, json.dumps(chat("Who?", "Ada keeps it."))) == ""
    after = rows.read_text().split("\n")
    assert after[1] == before[1]
    assert [json.loads(line).get("review") for line in after[:4]] == [
        {"verdict": "accept"}, None, {"verdict": "reject"}, {"verdict": "edit"},
    ]  # fmt: skip
    assert json.loads(after[2])["messages"] == json.loads(before[2])["messages"]
    assert json.loads(after[3])["messages"][0]["content"] == "Who?"


def test_a_review_goes_on_at_the_first_row_without_a_verdict(rows):
    with open_review(rows) as sitting:
        sitting.say(0, "accept")
        sitting.say(1, "reject")
    with open_review(rows) as sitting:
        assert [row.values["messages"][0]["content"] for row in sitting] == ["Question 2?", "Question 3?"]
        assert dict(sitting.said()) == {"accept": 1, "reject": 1, "": 2}
    with open_review(rows, again=True) as sitting:
        assert len(sitting) == 4


def test_training_leaves_rejected_rows_out_and_says_so(rows):
    with open_review(rows) as sitting:
        sitting.say(1, "reject")
    reading = Reading()
    read = list(read_rows(inputs_of([str(rows)], ignore), "chat", reading=reading))
    assert [item.row.messages[0].content for item in read] == ["Question 0?", "Question 2?", "Question 3?"]
    assert reading.notes() == ["left out: 1 rows rejected in review"]


def test_a_key_review_of_the_users_own_is_no_verdict(tmp_path):
    path = tmp_path / "films.jsonl"
    path.write_text("".join(json.dumps(chat("Good?", "Yes.", review=mark)) + "\n" for mark in ("reject", {"stars": 2})))
    assert len(list(read_rows(inputs_of([str(path)], ignore), "chat"))) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "broken JSON"),
        ("[1]", "an object"),
        ('{"messages": []}', ""),
        ('{"prompt": "a", "completion": "b"}', "prompt-completion rows now, not messages"),
    ],
)
def test_an_edit_that_training_could_not_read_is_not_kept(rows, text, said):
    before = rows.read_bytes()
    with open_review(rows) as sitting:
        wrong = sitting.edit(0, text)
    assert said in wrong
    assert wrong
    assert rows.read_bytes() == before


def test_a_file_that_changed_meanwhile_is_not_overwritten(rows):
    with open_review(rows) as sitting:
        rows.write_text(rows.read_text() + "\n")
        with pytest.raises(MlxforgeError, match="changed by another program"):
            sitting.say(0, "accept")
    assert "review" not in rows.read_text()


def test_a_row_stands_beside_the_span_it_came_from(kb, rows):
    with open_review(kb) as sitting:
        passage = sitting.passage(sitting[0])
        assert passage.text[slice(*passage.span)] == "Ada keeps it."
        assert passage.place == "mill.md, chunk 0, page 3 · Mill"
    with open_review(rows) as sitting:
        assert "--kb" in sitting.passage(sitting[0]).problem
    with open_review(rows, kb) as sitting:
        assert sitting.passage(sitting[0]).text == TEXT
    with open_store(kb) as store, store.writing() as db:
        db.execute("INSERT INTO edits VALUES (1, 'New text.', 2, '')")
    with open_review(kb) as sitting:  # the span was of another text
        assert (sitting.passage(sitting[0]).text, sitting.passage(sitting[0]).span) == ("New text.", (0, 0))


def test_the_store_keeps_what_gates_and_people_said(kb, terminal):
    shown = terminal(code(kb), 110, 24)
    shown.until("row 1 of 4")
    shown.type("a")
    shown.until("it says nothing of the mill")
    assert "gates: rejected · grounded: it says nothing of the mill" in "\n".join(shown.screen())
    shown.type("a")
    shown.until("row 3 of 4")
    shown.type("sbr")
    shown.until("row 4 of 4")
    shown.type("q")
    assert shown.wait() == 0
    assert "1 not reviewed" in shown.written.decode()
    assert verdicts(kb) == [
        ("accepted", None, "accept"),
        ("accepted", "grounded", "accept"),
        ("rejected", "review", "reject"),
        ("rejected", "length", None),
    ]


def test_an_edit_in_the_users_editor(kb, terminal, tmp_path, monkeypatch):
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import sys; from pathlib import Path; p = Path(sys.argv[1]); p.write_text(p.read_text().replace('Ada', 'Bo'))"
    )
    monkeypatch.setenv("EDITOR", f"{sys.executable} {editor}")
    monkeypatch.delenv("VISUAL", raising=False)
    shown = terminal(code(kb))
    shown.until("row 1 of 4")
    modes = shown.modes()
    shown.type("e")
    shown.until("row 2 of 4")
    shown.type("e")
    shown.until("row 3 of 4")
    assert shown.modes() == modes
    shown.type("q")
    assert shown.wait() == 0
    assert [row[0:3:2] for row in verdicts(kb)][:2] == [("accepted", "edit")] * 2
    with open_review(kb, again=True) as sitting:
        assert sitting[0].values["messages"][1]["content"] == "Bo keeps it."
        assert sitting[0].values["source"] == source()


def test_a_person_may_think_again_and_the_gates_word_stays(kb):
    with open_review(kb) as sitting:
        for number in (0, 1):
            sitting.say(number, "reject")
            sitting.say(number, "accept")
    assert verdicts(kb)[:2] == [("accepted", None, "accept"), ("accepted", "grounded", "accept")]


def test_ctrl_z_and_ctrl_c_give_the_terminal_back(kb, terminal):
    shown = terminal(code(kb))
    shown.until("row 1 of 4")
    shown.type("a")
    shown.until("row 2 of 4")
    modes = shown.modes()
    shown.type("\x1a")
    os.waitpid(shown.pid, os.WUNTRACED)
    shown.until("\x1b[?1049l")
    assert shown.modes()[3] != modes[3]  # lines and echo again
    seen = len(shown.written)
    shown.signal(signal.SIGCONT)
    end = time.time() + 10
    while b"row 2 of 4" not in shown.written[seen:]:
        assert time.time() < end
        shown._read()
    shown.type("\x03")
    assert shown.wait() == 130
    assert shown.written.decode().rstrip().endswith("stopped")
    assert verdicts(kb)[0] == ("accepted", None, "accept")


def test_only_and_list_and_json(kb):
    words = [str(kb), "--only", "rejected", "--list", "9"]
    done = CliRunner().invoke(review, words)
    assert done.exit_code == 0, done.output
    assert [line for line in done.stdout.splitlines() if line.startswith("qa job 1")] == [
        "qa job 1, row 2 · rejected · grounded: it says nothing of the mill",
        "qa job 1, row 4 · rejected · length: it says nothing of the mill",
    ]
    assert done.stdout.count("  from mill.md, chunk 0") == 2
    result = json.loads(CliRunner().invoke(review, [*words, "--json"]).stdout)  # nothing else on stdout
    assert [(row["place"], row["verdict"]) for row in result.pop("listed")] == [
        ("qa job 1, row 2", "rejected"),
        ("qa job 1, row 4", "rejected"),
    ]
    assert result == {"rows": 4, "accepted": 0, "edited": 0, "rejected": 0, "open": 4, "stored": True}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.jsonl"], "no such file"),
        (["x.csv"], "neither JSON lines nor"),
        (["empty.jsonl"], "no rows"),
        (["bad.jsonl"], "bad.jsonl:2: broken JSON"),
        (["sft.jsonl"], "needs a terminal"),
        (["sft.jsonl", "--only", "rejected"], "are in the knowledge base"),
        (["sft.jsonl", "--kb", "bad.jsonl"], "not a whole knowledge base"),
        (["kb.sqlite", "--kb", "kb.sqlite"], "text of its own rows"),
    ],
)
def test_bad_input_is_one_line(kb, rows, tmp_path, words, said):
    for name, text in (("x.csv", "a\n"), ("empty.jsonl", "\n"), ("bad.jsonl", '{"a": 1}\n{"a"\n')):
        (tmp_path / name).write_text(text)
    named = [str(tmp_path / word) if "." in word else word for word in words]
    done = CliRunner().invoke(review, named)
    assert isinstance(done.exception, MlxforgeError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_picture_keeps_to_the_size_of_the_screen(kb):
    from rich.console import Console

    from mlxforge.ui.review import Picture

    with open_review(kb) as sitting:
        for width, height in ((120, 30), (80, 24), (40, 9), (20, 4), (9, 2)):
            console = Console(width=width, height=height, record=True, file=sys.stderr, force_terminal=True)
            picture = Picture(sitting)
            picture.show(1)
            with console.capture() as captured:
                console.print(picture, end="")
            lines = captured.get().split("\n")
            assert len(lines) <= height
            assert "quit" in lines[-1] or width < 40
            console.clear()


def test_what_a_person_rejected_is_told_by_synth_qa(capsys):
    from mlxforge.cli.synth_qa import _show

    tasks = {"done": 1, "failed": 0, "open": 0}
    spent = {"calls": 1, "prompt_tokens": 9, "completion_tokens": 5, "cost": 0.0}
    _show({"tasks": tasks, "styles": {"factual": 1}, "rejected": {"review": 2}, "files": {}, **spent})
    assert "refused: 2 review (by a person)" in capsys.readouterr().out
