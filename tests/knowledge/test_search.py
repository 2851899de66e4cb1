"""A search among more matches than are ranked: still only what matches and is in force, scored and shown as in a full one."""

from __future__ import annotations

import pytest

from mlxforge.knowledge import search as module
from mlxforge.knowledge.search import CLOSE, OPEN, search
from mlxforge.knowledge.store import Chunk, Document, now, open_store

CHUNKS = 400


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "kb.sqlite", create=True) as opened:
        for number in range(2):
            texts = [f"mill {'wheel ' * (at % 7)}{'heron ' * (at == 150)}flour {at}\n" for at in range(CHUNKS)]
            cut = [Chunk(text, 5, "", None, 0, 0, 0) for text in texts]
            with opened.writing():
                opened.put(Document(f"/{number}.txt", "/", "h", "t", "text", "en", 9, "s", "{}"), cut)
        with opened.writing() as connection:
            connection.execute("UPDATE documents SET removed = ? WHERE path = '/1.txt'", (now(),))
            connection.execute("INSERT INTO edits SELECT id, '', 0, '' FROM chunks WHERE document = 1 AND \"index\" < 200")
        yield opened


def found(store, *words, **options):
    """As ``search``, and the same where all is ranked, by chunk."""
    few = search(store, *words, limit=1000, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST", 10**9)
        whole = search(store, *words, limit=1000, **options)
    return few, {hit["id"]: hit for hit in whole.hits}


@pytest.mark.parametrize("words", ["mill", "mill wheel", '"mill wheel"', "fl*"])
def test_some_of_very_many_matches_are_ranked_as_if_all_were(store, monkeypatch, words):
    monkeypatch.setattr(module, "MOST", 100)
    few, whole = found(store, words)
    assert 0 < few.ranked <= 100 < few.matches
    assert 5 <= len(few.hits) < len(whole)
    assert [hit["score"] for hit in few.hits] == sorted((hit["score"] for hit in few.hits), reverse=True)
    for hit in few.hits:
        assert hit == whole[hit["id"]]
        assert OPEN in hit["snippet"]
        assert CLOSE in hit["snippet"]


@pytest.mark.parametrize("words", ['"mill wheel"', "fl*", "mill-wheel", "mill whe*"])
def test_of_a_phrase_or_a_beginning_that_is_everywhere_a_part_of_the_store_is_ranked(store, monkeypatch, words):
    whole = {hit["id"]: hit for hit in search(store, words, limit=1000).hits}
    monkeypatch.setattr(module, "MOST", 250)
    monkeypatch.setattr(module, "_sampled", None)
    few = search(store, words, limit=3)
    assert len(few.hits) == 3 <= few.ranked < 250 < few.matches
    assert [hit["score"] for hit in few.hits] == sorted((hit["score"] for hit in few.hits), reverse=True)
    for hit in few.hits:
        assert {**hit, "score": 0} == {**whole[hit["id"]], "score": 0}


def test_of_many_words_the_rarest_chooses(store, monkeypatch):
    monkeypatch.setattr(module, "MOST", 100)
    store.rows("DELETE FROM edits WHERE chunk <= 200")
    few, whole = found(store, "mill heron wheel flour", any_word=True)
    assert few.hits[0]["index"] == max(whole.values(), key=lambda hit: hit["score"])["index"] == 150
    assert f"{OPEN}mill{CLOSE}" in few.hits[0]["snippet"]  # words that rank nothing are shown, too


def test_few_matches_are_all_ranked(store):
    few = search(store, "heron")
    assert (few.matches, few.ranked, few.hits) == (1, 1, [])  # one's document is removed, one is dropped
