"""The store: whole or refused, edits beside originals, the index always that of the text in force."""

from __future__ import annotations

import sqlite3

import pytest

from mlxforge.core.errors import DataError
from mlxforge.knowledge.store import VERSION, Chunk, Document, open_store


def document(name: str) -> Document:
    return Document(f"/notes/{name}", "/notes", "hash", name, "text", "en", 10, "settings", "{}")


def parts(*texts: str) -> list[Chunk]:
    places = [sum(map(len, texts[:i])) for i in range(len(texts))]
    return [
        Chunk(text, 3, "Mill > Wheel", None, place, place + len(text), 4 if place else 0)
        for text, place in zip(texts, places, strict=True)
    ]


@pytest.fixture
def kb(tmp_path):
    path = tmp_path / "kb.sqlite"
    with open_store(path, create=True) as store, store.writing():
        store.put(document("mill"), parts("The mill turns. ", "Its wheel is old."))
        store.put(document("gate"), parts("The gate is green."))
    return path


def found(store, words: str) -> list[int]:
    return [row["rowid"] for row in store.rows("SELECT rowid FROM search WHERE search MATCH ? ORDER BY rowid", (words,))]


def test_chunks_joined_are_the_text_and_a_passage_begins_with_its_overlap(kb):
    with open_store(kb) as store:
        assert store.text(1) == "The mill turns. Its wheel is old."
        passages = store.rows('SELECT passage FROM passages WHERE document = 1 ORDER BY "index"')
    assert [row["passage"] for row in passages] == ["The mill turns. ", "ns. Its wheel is old."]


def test_the_index_follows_edits_reverts_and_drops(kb):
    with open_store(kb) as store:
        assert found(store, "wheel") == [1, 2, 3]  # every heading names it
        assert found(store, "text:wheel") == [2]
        with store.writing() as connection:
            connection.execute("INSERT INTO edits VALUES (2, 'Its sails are new.', 4, 'now')")
        assert (found(store, "text:wheel"), found(store, "sails")) == ([], [2])
        assert store.text(1) == "The mill turns. Its sails are new."
        with store.writing() as connection:
            connection.execute("UPDATE edits SET text = 'Its roof leaks.' WHERE chunk = 2")
        assert (found(store, "sails"), found(store, "roof")) == ([], [2])
        with store.writing() as connection:
            connection.execute("DELETE FROM edits WHERE chunk = 2")
        assert (found(store, "roof"), found(store, "text:wheel")) == ([], [2])
        with store.writing() as connection:
            connection.execute("INSERT INTO edits VALUES (2, 'Its roof leaks.', 4, 'now')")
            connection.execute("DELETE FROM documents WHERE id = 1")
        assert (found(store, "text:roof OR text:wheel OR text:mill"), store.rows("SELECT * FROM edits")) == ([], [])
        store.connection.execute("INSERT INTO search(search, rank) VALUES ('integrity-check', 1)")


def test_a_document_is_replaced_under_its_path(kb):
    with open_store(kb) as store:
        with store.writing():
            store.put(document("mill"), parts("Quite another text."))
        assert found(store, "turns") == []
        assert len(store.rows("SELECT * FROM documents")) == 2


def test_documents_put_together_are_in_the_index_once_each(kb):
    with open_store(kb) as store:
        with store.writing():
            store.put_all([(document("gate"), parts("A new gate.")), (document("mill"), parts("Sails. ", "Its wheel is old."))])
            store.put_all([])
        assert (found(store, "text:green"), found(store, "text:turns")) == ([], [])
        texts = store.rows("SELECT text FROM search WHERE search MATCH 'text:gate OR text:sails OR text:wheel' ORDER BY text")
        assert [row["text"] for row in texts] == ["A new gate.", "Its wheel is old.", "Sails. "]
        store.rows("INSERT INTO search(search, rank) VALUES ('integrity-check', 1)")


def test_a_changed_document_keeps_its_id_and_the_edits_of_chunks_that_stay(kb):
    with open_store(kb) as store:
        with store.writing() as connection:
            connection.execute("INSERT INTO edits VALUES (1, 'The mill stands. ', 4, 'now')")
            connection.execute("INSERT INTO edits VALUES (2, 'Its wheel is gone.', 4, 'now')")
        with store.writing():
            assert store.put(document("mill"), parts("Once. ", "The mill turns. ", "Its wheel is new.")) == 1
        assert store.text(1) == "Once. The mill stands. Its wheel is new."
        order = store.rows('SELECT id, "index", start FROM chunks WHERE document = 1 ORDER BY "index"')
        assert [(row["id"], row["index"], row["start"]) for row in order][1] == (1, 1, 6)
        lost = store.rows("SELECT document, original, text FROM orphans")
        assert [tuple(row.values()) for row in lost] == [(1, "Its wheel is old.", "Its wheel is gone.")]
        assert (found(store, "text:old OR text:gone"), found(store, "text:stands")) == ([], [1])
        store.connection.execute("INSERT INTO search(search, rank) VALUES ('integrity-check', 1)")


def test_a_document_that_comes_back_is_in_force_again(kb):
    with open_store(kb) as store:
        with store.writing() as connection:
            connection.execute("UPDATE documents SET removed = 'now'")
        assert store.text(1) == ""
        with store.writing():
            store.put(document("mill"), parts("The mill turns. "))
        assert (store.text(1), store.text(2)) == ("The mill turns. ", "")


def test_an_empty_edit_takes_a_chunk_out(kb):
    with open_store(kb) as store:
        with store.writing() as connection:
            connection.execute("INSERT INTO edits VALUES (1, '', 0, 'now')")
        assert store.text(1) == "Its wheel is old."
        assert [row["passage"] for row in store.rows("SELECT passage FROM passages WHERE document = 1")] == [
            "Its wheel is old."
        ]


def test_a_store_that_is_only_read_cannot_be_written(kb):
    with open_store(kb, readonly=True) as store:
        assert store.text(2) == "The gate is green."
        with pytest.raises(DataError, match="cannot be used"), store.writing() as connection:
            connection.execute("DELETE FROM documents")
    with open_store(kb) as store:
        assert len(store.rows("SELECT * FROM documents")) == 2


def test_a_transaction_that_fails_leaves_nothing(kb):
    with open_store(kb) as store:

        def half() -> None:
            with store.writing() as connection:
                store.put(document("other"), parts("Lost."))
                connection.execute("INSERT INTO chunks SELECT * FROM chunks")

        with pytest.raises(sqlite3.IntegrityError):
            half()
        assert len(store.rows("SELECT * FROM documents")) == 2
        assert found(store, "lost") == []


def test_what_is_no_store_is_refused_and_left_as_it_is(tmp_path, kb):
    with pytest.raises(DataError, match="mlxforge ingest"), open_store(tmp_path / "none.sqlite"):
        pass
    text = tmp_path / "text.sqlite"
    text.write_text("not a database at all, but a text of some length that SQLite cannot read")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE birds (name)")
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(DataError, match=path.name), open_store(path, create=True):
            pass
        assert path.read_bytes() == before
    with sqlite3.connect(kb) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(DataError, match="upgrade"), open_store(kb):
        pass


def test_a_store_that_another_process_holds_is_said_so(kb, monkeypatch):
    monkeypatch.setattr("mlxforge.knowledge.store.WAIT", 0.05)
    with open_store(kb) as holder, holder.writing(), open_store(kb) as late:
        with pytest.raises(DataError, match="another process is writing"), late.writing():
            pass
        assert len(late.rows("SELECT * FROM documents")) == 2  # readers go on
