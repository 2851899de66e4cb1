"""``mlxforge kb`` as a user runs it: what it shows, what it changes, and one line for every mistake."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from mlxforge.cli.main import cli, run
from mlxforge.cli.shaping import edited
from mlxforge.core.errors import DataError
from mlxforge.data.readers import Reading
from mlxforge.data.sources import content_key, documents, locate, parse_spec
from mlxforge.knowledge.chunk import Heading, Text, chunks
from mlxforge.knowledge.count import counter_of
from mlxforge.knowledge.store import Document, open_store
from mlxforge.models.hub import resolve_model

COUNTER = counter_of(resolve_model("tiny"))
MILL = "# The mill\n\nThe mill stands by the river.\n\nIts wheel turns slowly.\n"
GATE = "The gate is green. It leads to the garden.\n"


def put(store, name: str, text: str, headings=()) -> int:
    cut = chunks(Text(text, headings), COUNTER, 16, 0)
    return store.put(Document(f"/notes/{name}", "/notes", "h", name[:-3], "markdown", "en", len(text), "s", "{}"), cut)


@pytest.fixture
def kb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_store(tmp_path / "kb.sqlite", create=True) as store, store.writing() as connection:
        put(store, "mill.md", MILL, [Heading(0, 1, "The mill")])
        put(store, "gate.md", GATE)
        put(store, "old.md", "The gate was red once.\n")
        connection.execute("UPDATE documents SET removed = 'then' WHERE path = '/notes/old.md'")
        store.note("model", "tiny")
    return tmp_path / "kb.sqlite"


@pytest.fixture
def kb_(kb, capfd):
    """Runs a command: (exit code, stdout, stderr)."""

    def call(command: str, *words: str):
        code = run(["kb", command, "kb.sqlite", *words], debug=False)
        return (code, *capfd.readouterr())

    return call


def refused(answer, *words: str) -> None:
    code, out, err = answer
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words)


def texts(path) -> list[str]:
    return [one.text for one in documents(locate([parse_spec(str(path))]))]


def key(path) -> str:
    return content_key(locate([parse_spec(str(path))]))


def test_list_tells_removed_ones_apart_and_filters(kb_):
    code, out, _ = kb_("list")
    force, gone = out.split("removed: 1 document")
    assert code == 0
    assert -1 < force.find("/notes/gate.md") < force.find("/notes/mill.md")
    assert "/notes/old.md" in gone
    assert "/notes/old.md" not in force
    found = json.loads(kb_("list", "MILL", "--json")[1])["documents"]
    assert [(one["path"], one["edits"], one["removed"]) for one in found] == [("/notes/mill.md", 0, None)]
    assert "no document" in kb_("list", "--type", "pdf")[1]


def test_show_by_id_path_end_of_path_and_chunk(kb_):
    pages = [json.loads(kb_("show", name, "--json")[1]) for name in ("1", "/notes/mill.md", "mill.md")]
    assert pages[0] == pages[1] == pages[2]
    assert "".join(chunk["text"] for chunk in pages[0]["chunk_list"]) == MILL
    last = pages[0]["chunk_list"][-1]
    chunk = json.loads(kb_("show", f"mill.md:{last['index']}", "--json")[1])
    assert (chunk["text"], chunk["start"], chunk["end"]) == (last["text"], last["start"], len(MILL))
    code, out, _ = kb_("show", "1:0")
    assert code == 0
    assert "heading   The mill" in out
    refused(kb_("show", "9"), "no document '9'", "kb list")
    refused(kb_("show", "mil"), "near: /notes/mill.md")
    refused(kb_("show", "1:99"), "no chunk 99", "its chunks are 0 to")


def test_search_finds_forms_phrases_and_beginnings_and_never_fails_on_signs(kb_):
    def hits(*words):
        return [hit["path"] for hit in json.loads(kb_("search", *words, "--json")[1])["hits"]]

    assert hits("turning", "wheels") == ["/notes/mill.md"]
    assert hits('"green gate"') == []
    assert hits('"gate is green"') == ["/notes/gate.md"]
    assert hits("the", "gate", "and") == ["/notes/gate.md"]  # beside others, common words are passed over
    assert set(hits("the")) == {"/notes/gate.md", "/notes/mill.md"}
    assert hits("gard*") == ["/notes/gate.md"]
    assert hits("mill", "garden") == []
    assert set(hits("mill", "garden", "--any")) == {"/notes/gate.md", "/notes/mill.md"}
    assert hits("red") == []  # its file is gone
    for odd in ('gate"', "gate AND (", "NEAR(gate", "-gate", "gate:", "^gate +", 'a"b"c" OR', "gate\x00*", "{gate} : is"):
        assert kb_("search", "--", odd)[0] == 0
    refused(kb_("search", "!!! ()"), "no word to search for")
    refused(kb_("search", "--raw", "gate AND ("), "no FTS5 expression")
    assert hits("--raw", "gate NOT red") == ["/notes/gate.md"]


def test_an_edit_reaches_search_and_training_and_can_be_reverted(kb, kb_):
    before, was = texts(kb), key(kb)
    assert before == [GATE, MILL]  # by path; the removed one is not read
    code, out, _ = kb_("edit", "gate.md:0", "--text", "The gate is blue.")
    assert (code, out.split(":")[:2]) == (0, ["2", "0"])
    chunk = json.loads(kb_("show", "2:0", "--json")[1])
    kept = chunk["original"][len(chunk["original"].rstrip()) :]
    assert chunk["text"] == "The gate is blue." + kept
    assert chunk["tokens"] == COUNTER.count(chunk["text"])
    assert texts(kb)[0] == chunk["text"] + GATE[len(chunk["original"]) :]
    assert json.loads(kb_("search", "blue", "--json")[1])["hits"][0]["edited"] is True
    assert key(kb) != was
    assert "original" in kb_("show", "2:0")[1]
    assert "unchanged" in kb_("edit", "2:0", "--text", "The gate is blue.\n")[1]
    assert kb_("edit", "2:0", "--revert")[0] == 0
    assert (texts(kb), key(kb)) == (before, was)


def test_an_edit_comes_from_stdin_or_the_editor(kb, tmp_path):
    done = CliRunner().invoke(cli, ["kb", "edit", "kb.sqlite", "2:0", "--text", "-"], input="The gate is grey.\n")
    assert done.exit_code == 0
    assert texts(kb)[0].startswith("The gate is grey.")
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nprintf "The gate is gold." > "$1"\n')
    editor.chmod(0o755)
    code = (
        "import sys; sys.stdin.isatty = lambda: True\n"
        "from mlxforge.cli.main import run\nsys.exit(run(['kb', 'edit', 'kb.sqlite', '2:0'], debug=False))"
    )
    environment = {**os.environ, "EDITOR": str(editor), "VISUAL": str(editor)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    assert texts(kb)[0].startswith("The gate is gold.")


def test_an_editor_that_leaves_no_text_is_refused_in_one_line(monkeypatch, tmp_path):
    broken = tmp_path / "broken.sh"
    broken.write_text('#!/bin/sh\nprintf "\\377" > "$1"\n')
    broken.chmod(0o755)
    for command, what in ((str(broken), "not UTF-8 at byte 0"), ("'vi", "no command line: No closing quotation")):
        monkeypatch.setenv("VISUAL", command)
        with pytest.raises(DataError, match=what):
            edited("The gate is green.", ".txt")


def test_a_refused_edit_changes_nothing(kb, kb_):
    before = key(kb)
    refused(kb_("edit", "2:0", "--text", "  "), "empty", "kb drop")
    refused(kb_("edit", "2", "--text", "x"), "chunk by chunk", "2:0")
    assert key(kb) == before


def test_drop_asks_and_takes_documents_for_good_and_chunks_until_reverted(kb, kb_):
    before = texts(kb)
    answer = CliRunner().invoke(cli, ["kb", "drop", "kb.sqlite", "1"], input="")
    assert answer.exit_code == 2
    assert texts(kb) == before
    assert kb_("drop", "2:0", "-y")[0] == 0
    first = json.loads(kb_("show", "2:0", "--json")[1])
    assert (first["text"], texts(kb)[0]) == ("", GATE[len(first["original"]) :])
    assert json.loads(kb_("search", "green", "--json")[1])["hits"] == []
    assert kb_("edit", "2:0", "--revert")[0] == 0
    assert texts(kb) == before
    code, out, _ = kb_("drop", "1", "mill.md", "--yes", "--json")
    assert (code, json.loads(out)["documents"]) == (0, 1)
    assert texts(kb) == before[:1]
    refused(kb_("drop", "2", "mill.md", "-y"), "mill.md")
    assert texts(kb) == before[:1]


def test_export_writes_what_is_in_force_whole_or_not_at_all(kb, kb_, tmp_path):
    assert kb_("export", "-o", "all.jsonl")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert "".join(row["text"] for row in rows if row["document"] == "/notes/mill.md") == MILL
    assert all(row["span"][1] - row["span"][0] == len(row["text"]) for row in rows)
    assert texts(tmp_path / "all.jsonl") == [row["text"] for row in rows]
    assert kb_("export", "-o", "all.txt")[0] == 0
    assert (tmp_path / "all.txt").read_text() == GATE + "\n" + MILL
    out = kb_("export", "--as", "documents")[1]
    assert [json.loads(line)["text"] for line in out.splitlines()] == [GATE, MILL]
    refused(kb_("export", "-o", "all.txt"), "all.txt", "--force")
    refused(kb_("export", "nothing", "-o", "none.txt"), "no document fits")
    assert not [path for path in tmp_path.iterdir() if "none" in path.name]
    refused(kb_("export", "-o", "kb.sqlite", "--force"), "name another file")


def test_stats_add_up(kb_):
    page = json.loads(kb_("stats", "--json")[1])
    assert (page["documents"], page["removed"], page["model"]) == (2, 1, "tiny")
    assert sum(one["chunks"] for one in page["tokens_per_chunk"]["histogram"]) == page["chunks"]
    assert page["tokens"] == COUNTER.count(MILL) + COUNTER.count(GATE)
    assert "▇" in kb_("stats")[1]


def test_training_reads_while_somebody_writes_and_leaves_no_files_behind(kb):
    before, files = texts(kb), {path.name for path in kb.parent.iterdir()}
    digest = hashlib.sha256(kb.read_bytes()).hexdigest()
    assert (texts(kb), hashlib.sha256(kb.read_bytes()).hexdigest()) == (before, digest)
    assert {path.name for path in kb.parent.iterdir()} == files
    with open_store(kb) as writer:
        with writer.writing():
            put(writer, "new.md", "A new text.\n")
            assert texts(kb) == before  # not yet
        assert texts(kb) == [*before, "A new text.\n"]  # in the log, not in the file
        reading = documents(locate([parse_spec(str(kb))]), reading=Reading())
        first = next(reading).text
        with writer.writing() as connection:  # and it does not wait for who reads
            connection.execute("DELETE FROM documents")
        assert [first, *(one.text for one in reading)] == [*before, "A new text.\n"]


def test_a_store_in_a_folder_is_read_only_where_it_is_named(kb):
    (kb.parent / "note.txt").write_text("A note.\n")
    assert texts(kb.parent) == ["A note.\n"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_is_read(kb):
    os.chmod(kb, 0o444)
    os.chmod(kb.parent, 0o555)
    try:
        assert texts(kb) == [GATE, MILL]
    finally:
        os.chmod(kb.parent, 0o755)


@pytest.mark.parametrize("command", ["list", "stats", "show", "search", "edit", "drop", "export"])
def test_what_is_no_knowledge_base_is_one_line(kb_, kb, command):
    words = {"show": ["1"], "search": ["mill"], "edit": ["1:0", "--text", "x"], "drop": ["1", "-y"]}.get(command, [])
    kb.write_bytes(b"x" * 4096)
    refused(kb_(command, *words), "kb.sqlite", "not a whole knowledge base")
    assert kb.read_bytes() == b"x" * 4096
    kb.unlink()
    refused(kb_(command, *words), "mlxforge ingest")


def test_check_and_cpt_read_it(kb, capfd):
    assert run(["data", "check", "kb.sqlite", "--method", "cpt", "--json"], debug=False) == 0
    page = json.loads(capfd.readouterr().out)
    assert (page["files"][0]["rows"], page["methods"], page["tokens"]["total"]) == (2, ["cpt"], COUNTER.count(MILL + GATE))
