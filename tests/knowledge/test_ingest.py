"""Ingest: the store holds what the folder holds, however often it runs and whenever it is killed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxforge.core.errors import ConfigError, DataError, MlxforgeError
from mlxforge.core.events import Progress
from mlxforge.knowledge import reading
from mlxforge.knowledge.chunk import Heading, Text
from mlxforge.knowledge.clean import chosen
from mlxforge.knowledge.reading import Task, counter, recipe, segments
from mlxforge.knowledge.store import open_store
from mlxforge.knowledge.workers import CRASHED, outcomes
from mlxforge.models.hub import resolve_model
from mlxforge.runs.ingest import IngestSettings, ingest

CODE = "import sys; from mlxforge.cli.main import main; main(sys.argv[1:])"


def command(*words: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *map(str, words)], capture_output=True, text=True, check=False, **options
    )


@pytest.fixture
def notes(tmp_path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "mill.md").write_text("# Mill\n\nThe mill stands by the river.\n\n## Wheel\n\nIts wheel is old.\n")
    (folder / "deep" / "gate.txt").write_text("The gate is green.\n")
    (folder / ".hidden.txt").write_text("Hidden.")
    (folder / "photo.png").write_bytes(b"\x89PNG")
    (folder / "loop").symlink_to(folder)
    return folder


def texts(path: Path) -> dict[str, str]:
    with open_store(path) as store:
        rows = store.rows("SELECT id, path FROM documents WHERE removed IS NULL")
        return {Path(row["path"]).name: store.text(row["id"]) for row in rows}


def states(result) -> dict[str, int]:
    return {name: count for name, count in result["documents"].items() if count}


def whole(path: Path) -> None:
    """The file is in order, and its index is that of its texts."""
    with open_store(path) as store:
        assert store.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        assert store.rows("PRAGMA foreign_key_check") == []
        with store.writing() as connection:
            connection.execute("INSERT INTO search(search, rank) VALUES ('integrity-check', 1)")


def test_documents_come_in_once_change_go_and_come_back(notes, tmp_path):
    kb = tmp_path / "kb.sqlite"
    first = ingest([str(notes)], kb)
    assert states(first) == {"added": 2}
    assert first["skipped"] == {".png": 1, "hidden": 1}
    assert texts(kb) == {name: next(notes.rglob(name)).read_text() for name in ("mill.md", "gate.txt")}
    assert states(ingest([str(notes), str(notes / "mill.md")], kb)) == {"unchanged": 2}

    (notes / "mill.md").write_text("# Mill\n\nThe mill is new.\n")
    (notes / "deep" / "gate.txt").rename(tmp_path / "gate.txt")
    changed = ingest([str(notes)], kb)
    assert states(changed) == {"changed": 1, "removed": 1}
    assert changed["removed"] == [str(notes.resolve() / "deep" / "gate.txt")]
    assert texts(kb) == {"mill.md": "# Mill\n\nThe mill is new.\n"}

    (tmp_path / "gate.txt").rename(notes / "deep" / "gate.txt")
    assert states(ingest([str(notes)], kb)) == {"unchanged": 1, "revived": 1}
    assert texts(kb)["gate.txt"] == "The gate is green.\n"
    whole(kb)


def test_only_what_is_below_the_named_folder_is_marked_removed(notes, tmp_path):
    kb = tmp_path / "kb.sqlite"
    ingest([str(notes)], kb)
    (notes / "deep" / "more.txt").write_text("More.")
    (notes / "mill.md").unlink()
    assert states(ingest([str(notes / "deep")], kb)) == {"added": 1, "unchanged": 1}
    assert states(ingest([str(notes)], kb)) == {"unchanged": 2, "removed": 1}


def test_edits_stay_where_the_text_stays(notes, tmp_path):
    kb = tmp_path / "kb.sqlite"
    paragraphs = [f"{word} " * 12 + "\n\n" for word in ("wheel", "stone", "flour")]
    (notes / "mill.md").write_text("".join(paragraphs))
    sizes = IngestSettings(size=30, overlap=0)
    ingest([str(notes)], kb, sizes)
    with open_store(kb) as store, store.writing() as connection:
        for word in ("wheel", "flour"):
            query = "INSERT INTO edits SELECT id, 'EDITED ' || text, 3, 'now' FROM chunks WHERE text LIKE ?"
            connection.execute(query, (f"{word}%",))
    (notes / "mill.md").write_text("".join([*paragraphs[:2], "bread " * 12]))
    result = ingest([str(notes)], kb)
    assert (states(result), result["orphans"] > 0) == ({"changed": 1, "unchanged": 1}, True)
    assert "EDITED wheel" in texts(kb)["mill.md"]
    assert "flour" not in texts(kb)["mill.md"]
    whole(kb)


def test_settings_that_are_not_given_are_those_of_the_store(notes, tmp_path):
    kb = tmp_path / "kb.sqlite"
    ingest([str(notes)], kb, IngestSettings(size=20, overlap=5, keep=("control", "nfc")))
    assert states(ingest([str(notes)], kb)) == {"unchanged": 2}
    assert states(ingest([str(notes)], kb, IngestSettings(keep=()))) == {"changed": 2}
    assert states(ingest([str(notes)], kb, IngestSettings(size=40))) == {"changed": 2}


def test_bad_files_are_named_and_the_rest_is_read(notes, tmp_path):
    kb = tmp_path / "kb.sqlite"
    ingest([str(notes)], kb)
    (notes / "mill.md").write_bytes(b"caf\xe9")
    (notes / "empty.txt").write_text("")
    (notes / "broken.pdf").write_bytes(b"%PDF-1.4")
    (notes / "dangling.txt").symlink_to(notes / "nowhere")
    done = command("ingest", notes, "--into", kb, "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0
    assert states(result) == {"unchanged": 1, "failed": 3}
    reasons = {Path(row["path"]).name: row["reason"] for row in result["failed"]}
    assert reasons.keys() == {"broken.pdf", "empty.txt", "mill.md"}
    assert "not UTF-8 at byte 3" in reasons["mill.md"]
    assert f"not read: {notes.resolve() / 'mill.md'}" in done.stderr
    assert "Its wheel is old." in texts(kb)["mill.md"]  # what the store had of it


MISTAKES = [
    (["nowhere"], "no such file or folder"),
    (["empty"], "nothing in the folder can be read"),
    (["a.png"], "cannot read '.png' files"),
    (["a.txt", "--model", "./nowhere"], "no such model"),
    (["a.txt", "--size", "10", "--overlap", "9"], "an overlap of 9 tokens"),
    (["a.txt", "--keep", "header"], "no cleaning step 'header'"),
    (["a.txt", "--keep", "nfc", "--no-clean"], "two answers"),
    ([], "nothing to read is named"),
    (["a.txt", "--from-chroma", "."], "go together"),
    (["--from-chroma", ".", "--collection", "a"], "no Chroma store here"),
    (["blank.txt"], "nothing could be read"),
]


def test_mistakes_are_one_line_and_leave_no_store(tmp_path, monkeypatch):
    from mlxforge.cli.main import cli, run

    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name, text in (("a.txt", "The mill."), ("a.png", "x"), ("blank.txt", " ")):
        Path(name).write_text(text)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for words, message in MISTAKES:
        with pytest.raises(MlxforgeError) as caught:
            cli.main(["ingest", *words, "--into", "kb.sqlite"], standalone_mode=False)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("kb.sqlite*")), words
    assert run(["ingest", "nowhere", "--into", "kb.sqlite"], debug=False) == 2


def test_a_store_that_cannot_be_used_is_left_as_it_is(notes, tmp_path, monkeypatch):
    kb = tmp_path / "kb.sqlite"
    ingest([str(notes)], kb)
    monkeypatch.setattr("mlxforge.data.kb.WAIT", 0.1)
    monkeypatch.setattr("mlxforge.knowledge.store.WAIT", 0.1)
    holder = sqlite3.connect(kb, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DataError, match="another process is writing"):
        ingest([str(notes)], kb)
    holder.execute("ROLLBACK")
    holder.execute("PRAGMA user_version = 99")
    holder.close()
    before = kb.read_bytes()
    with pytest.raises(DataError, match="version 99"):
        ingest([str(notes)], kb)
    assert kb.read_bytes() == before
    with pytest.raises(DataError, match="no such folder"):
        ingest([str(notes)], tmp_path / "no" / "kb.sqlite")


def fill(folder: Path, files: int) -> None:
    rng = random.Random(0)
    words = "mill wheel stone river flour sack gate miller bread noon".split()
    for number in range(files):
        text = "\n\n".join(" ".join(rng.choices(words, k=60)) + f" {number}." for _ in range(60))
        (folder / f"{number:03d}.txt").write_text(text)


def killed_at(folder: Path, kb: Path, seconds: float) -> int:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "ingest", str(folder), "--into", str(kb)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_as_if_never_killed(tmp_path):
    folder, kb, calm = tmp_path / "notes", tmp_path / "kb.sqlite", tmp_path / "calm.sqlite"
    folder.mkdir()
    fill(folder, 300)
    ingest([str(folder)], calm)
    killed = 0
    for moment in (0.5, 0.8, 1.1, 1.4, 1.7, 2.0):
        killed += killed_at(folder, kb, moment) != 0
        if kb.exists():
            for name, text in texts(kb).items():
                assert text == (folder / name).read_text()
    assert killed
    ingest([str(folder)], kb)
    assert texts(kb) == texts(calm)
    whole(kb)
    with open_store(kb) as store:
        assert store.rows("SELECT count(*) AS n FROM chunks WHERE document NOT IN (SELECT id FROM documents)")[0]["n"] == 0


@pytest.mark.slow
def test_ctrl_c_ends_it_and_its_workers(tmp_path):
    folder, kb = tmp_path / "notes", tmp_path / "kb.sqlite"
    folder.mkdir()
    fill(folder, 2000)
    process = subprocess.Popen([sys.executable, "-c", CODE, "ingest", str(folder), "--into", str(kb)], stderr=subprocess.PIPE)
    while not kb.exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, b"Traceback" in errors) == (130, False)
    if kb.exists():
        whole(kb)
    assert sum(ingest([str(folder)], kb)["documents"].values()) == 2000


def given_recipe(**options):
    return recipe(resolve_model("tiny"), chosen(()), options.get("size", 500), options.get("overlap", 50))


@pytest.mark.slow
def test_workers_give_what_one_process_gives_and_one_that_dies_costs_its_file_alone(tmp_path, monkeypatch):
    fill(tmp_path, 12)
    (tmp_path / "003.docx").write_bytes(b"PK")  # a reader that is not Python alone: workers read it all
    tasks = [Task(path, path.name, "") for path in sorted(tmp_path.iterdir())]
    found = list(outcomes(tasks, given_recipe()))
    assert [one.task for one in found] == tasks
    assert [bool(one.document) for one in found] == [task.path.suffix == ".txt" for task in tasks]
    assert found == [reading.take(task, given_recipe()) for task in tasks]

    script = tmp_path / "crash.py"
    script.write_text(
        "import os\nfrom mlxforge.knowledge import reading, workers\n"
        "def take_all(tasks, given):\n    return [workers.packed(take(task, given)) for task in tasks]\n"
        "def take(task, given):\n    if '003' in task.name: os._exit(9)\n    return reading.take(task, given)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import crash

    monkeypatch.setattr("mlxforge.knowledge.workers.take", crash.take)
    monkeypatch.setattr("mlxforge.knowledge.workers.take_all", crash.take_all)
    broken = list(outcomes(tasks, given_recipe()))
    assert [one.task for one in broken] == tasks
    assert [one.error == CRASHED for one in broken] == ["003" in task.name for task in tasks]


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="ab .\n", max_size=300), st.sets(st.integers(0, 299), max_size=5), st.integers(4, 20))
def test_segments_lose_nothing_and_know_their_headings_and_pages(text, places, segment):
    whole_size, reading.SEGMENT = reading.SEGMENT, segment
    try:
        starts = sorted(place for place in places if place < len(text))
        document = Text(text, [Heading(place, 1 + i % 2, f"h{i}") for i, place in enumerate(starts)], [0, *starts])
        cut = [
            chunk
            for part in segments(document, given_recipe(size=8, overlap=2), counter(resolve_model("tiny")))
            for chunk in part
        ]
    finally:
        reading.SEGMENT = whole_size
    assert "".join(chunk.text for chunk in cut) == text
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in cut)
    assert all(chunk.page == sum(place <= chunk.start for place in [0, *starts]) for chunk in cut)


def test_a_size_that_leaves_no_room_is_said_before_anything_is_read(notes, tmp_path):
    with pytest.raises(ConfigError):
        ingest([str(notes)], tmp_path / "kb.sqlite", IngestSettings(size=10, overlap=9))


CHROMA = """
CREATE TABLE collections (id TEXT PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE segments (id TEXT PRIMARY KEY, type TEXT NOT NULL, scope TEXT NOT NULL, collection TEXT NOT NULL);
CREATE TABLE embeddings (id INTEGER PRIMARY KEY, segment_id TEXT NOT NULL, embedding_id TEXT NOT NULL, seq_id BLOB NOT NULL);
CREATE TABLE embedding_metadata (id INTEGER, key TEXT NOT NULL, string_value TEXT, int_value INTEGER, float_value REAL,
    bool_value INTEGER, PRIMARY KEY (id, key));
INSERT INTO collections VALUES ('c1', 'notes'), ('c2', 'empty');
INSERT INTO segments VALUES ('v', 'hnsw', 'VECTOR', 'c1'), ('m', 'sqlite', 'METADATA', 'c1');
INSERT INTO embeddings VALUES (1, 'm', 'a0', 1), (2, 'm', 'a1', 2), (3, 'm', 'x', 3);
INSERT INTO embedding_metadata (id, key, string_value, int_value) VALUES
    (1, 'chroma:document', 'The mill.', NULL), (1, 'source', 'docs/a.pdf', NULL),
    (1, 'page_label', '3', NULL), (1, 'page', NULL, 2),
    (2, 'chroma:document', 'Its wheel.', NULL), (2, 'source', 'docs/a.pdf', NULL), (2, 'Header 1', 'Wheel', NULL),
    (3, 'chroma:document', 'Alone.', NULL);
"""


def check_imported(store_folder: Path, kb: Path) -> None:
    first = ingest([], kb, chroma=store_folder, collection="notes")
    assert states(first) == {"added": 2}
    with open_store(kb) as store:
        rows = store.rows('SELECT path, title, text, heading, page FROM current ORDER BY path, "index"')
    assert [tuple(row.values()) for row in rows] == [
        ("chroma:notes", "chroma:notes", "Alone.\n\n", "", None),
        ("chroma:notes/docs/a.pdf", "a.pdf", "The mill.\n\n", "", 3),
        ("chroma:notes/docs/a.pdf", "a.pdf", "Its wheel.\n\n", "Wheel", None),
    ]
    assert states(ingest([], kb, chroma=store_folder, collection="notes")) == {"unchanged": 2}
    whole(kb)


def test_chunks_of_a_chroma_store(tmp_path):
    store_folder, kb = tmp_path / "chroma", tmp_path / "kb.sqlite"
    store_folder.mkdir()
    with sqlite3.connect(store_folder / "chroma.sqlite3") as connection:
        connection.executescript(CHROMA)
    check_imported(store_folder, kb)
    connection.execute("DELETE FROM embeddings WHERE id = 3")
    connection.commit()
    assert states(ingest([], kb, chroma=store_folder, collection="notes")) == {"unchanged": 1, "removed": 1}
    with pytest.raises(DataError, match="did you mean 'notes'"):
        ingest([], kb, chroma=store_folder, collection="note")
    with pytest.raises(DataError, match="has no texts"):
        ingest([], kb, chroma=store_folder, collection="empty")
    shutil.copy(kb, store_folder / "chroma.sqlite3")
    with pytest.raises(DataError, match="not a Chroma store"):
        ingest([], tmp_path / "new.sqlite", chroma=store_folder, collection="notes")


@pytest.mark.slow
def test_chunks_of_a_store_that_chroma_itself_wrote(tmp_path):
    chromadb = pytest.importorskip("chromadb")
    collection = chromadb.PersistentClient(str(tmp_path / "chroma")).create_collection("notes", embedding_function=None)
    sources = [{"source": "docs/a.pdf", "page_label": "3"}, {"source": "docs/a.pdf", "Header 1": "Wheel"}, None]
    for name, text, source in zip("abx", ("The mill.", "Its wheel.", "Alone."), sources, strict=True):
        collection.add(ids=[name], embeddings=[[1.0, 2.0]], documents=[text], metadatas=[source] if source else None)
    check_imported(tmp_path / "chroma", tmp_path / "kb.sqlite")


@pytest.mark.skipif(sys.platform == "darwin", reason="APFS has only names in UTF-8")
def test_names_that_are_not_utf8_are_told_apart(tmp_path):
    folder, kb = tmp_path / "notes", tmp_path / "kb.sqlite"
    folder.mkdir()
    for name in (b"\xff\xfe.txt", b"\xfe\xff.txt", b"a\nb.txt", b"\xff.py"):
        with open(bytes(folder) + b"/" + name, "wb") as file:
            file.write(b"Text of " + name.hex().encode())
    assert states(ingest([str(folder)], kb)) == {"added": 4}
    found = texts(kb)
    assert found.keys() == {r"\xff\xfe.txt", r"\xfe\xff.txt", "a\nb.txt", r"\xff.py"}
    assert found[r"\xff\xfe.txt"] == "Text of fffe2e747874"
    assert states(ingest([str(folder)], kb)) == {"unchanged": 4}
    (folder / "a\nb.txt").unlink()
    assert states(ingest([str(folder)], kb)) == {"unchanged": 3, "removed": 1}


def test_what_was_read_does_not_wait_long_for_slower_files(notes, tmp_path, monkeypatch):
    monkeypatch.setattr("mlxforge.runs.ingest.LONGEST", 0.0)
    stored = []

    def count():
        with sqlite3.connect(tmp_path / "kb.sqlite") as connection:
            return connection.execute("SELECT count(*) FROM documents").fetchone()[0]

    def emit(event):
        if isinstance(event, Progress):  # a thread writes: it is given time
            until = time.monotonic() + 10
            while count() < event.done and time.monotonic() < until:
                time.sleep(0.01)
            stored.append(count())

    ingest([str(notes)], tmp_path / "kb.sqlite", emit=emit)
    assert stored == [1, 2]
