"""Chunks: the text exactly, no passage over the size, cuts at the best place, counts that add up."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxforge.core.errors import ConfigError
from mlxforge.knowledge.chunk import Heading, Text, chunks
from mlxforge.knowledge.count import PROBE, Counter, counter_of
from mlxforge.knowledge.pieces import WAYS as CUTS
from mlxforge.knowledge.pieces import ends_of
from mlxforge.models.hub import resolve_model

COUNTER = counter_of(resolve_model("tiny"))
WRITTEN = st.text(st.sampled_from("ab .!\n\t。é日👍🏽\u200d  ") | st.characters(exclude_categories=["Cs"]), max_size=400)


@given(WRITTEN, st.integers(2, 40), st.floats(0, 0.5))
def test_joined_they_are_the_text_and_no_passage_is_over_the_size(text, size, share):
    cut = chunks(Text(text), COUNTER, size, int(share * size))
    assert "".join(chunk.text for chunk in cut) == text
    for chunk in cut:
        assert text[chunk.start : chunk.end] == chunk.text != ""
        assert chunk.tokens <= size or (len(COUNTER.pieces(chunk.text)[0]) == 1 and chunk.overlap == 0)
        assert 0 <= chunk.overlap <= chunk.start


@given(WRITTEN)
def test_counts_are_the_tokenizer_s_within_one_in_a_line(text):
    whole = len(COUNTER.tokenizer.encode(text, add_special_tokens=False).ids)
    assert abs(COUNTER.count(text) - whole) <= text.count("\n") + text.count(" ") + text.count("\t")


def test_counts_of_written_text_are_exact():
    assert COUNTER.exact
    assert COUNTER.count(PROBE * 20) == len(COUNTER.tokenizer.encode(PROBE * 20, add_special_tokens=False).ids)


def test_a_text_without_a_space_is_cut_where_its_tokens_end():
    text = "日本語の文章です。" * 2000 + "x" * 5000
    cut = chunks(Text(text), COUNTER, 100, 10)
    assert "".join(chunk.text for chunk in cut) == text
    assert {chunk.tokens <= 100 for chunk in cut} == {True}
    assert sum(chunk.tokens for chunk in chunks(Text(text), COUNTER, 100, 0)) == COUNTER.count(text)


def test_cuts_are_at_headings_then_paragraphs_then_lines_then_sentences():
    line = "The mill stands by the river. Its wheel turns slowly.\n"
    text = line * 3 + "\n" + line * 3 + "Second part\n" + line * 3
    size = COUNTER.count(text) - 10
    heading = Heading(text.index("Second part"), 1, "Second part")
    cut = chunks(Text(text, [Heading(0, 1, "First"), heading]), COUNTER, size, 5)
    assert [chunk.text[:11] for chunk in cut] == ["The mill st", "Second part"]
    assert [(chunk.heading, chunk.overlap) for chunk in cut] == [("First", 0), ("Second part", 0)]
    assert chunks(Text(text), COUNTER, size, 5)[1].text[:8] == "The mill"
    assert chunks(Text(text), COUNTER, COUNTER.count(line * 5), 0)[0].text == line * 3 + "\n"
    assert chunks(Text(line), COUNTER, COUNTER.count(line) - 1, 0)[0].text == "The mill stands by the river."


def test_an_overlap_begins_with_a_sentence():
    text = "The mill stands by the river. Its wheel turns slowly. The miller counts his sacks at noon. Nobody helps him."
    cut = chunks(Text(text), COUNTER, 30, 12)
    assert len(cut) > 1
    assert text[cut[1].start - cut[1].overlap : cut[1].start].startswith(" Its wheel") or cut[1].overlap == 0
    assert any(chunk.overlap for chunk in cut[1:])


def test_paths_of_headings_and_pages():
    text = "A\none\nB\ntwo\nC\nthree\n"
    headings = [Heading(0, 1, "A"), Heading(6, 2, "B"), Heading(12, 1, "C")]
    cut = chunks(Text(text, headings, [0, 8]), COUNTER, 6, 0)
    seen = {chunk.text.split("\n")[0]: (chunk.heading, chunk.page) for chunk in cut}
    assert seen["A"] == ("A", 1)
    assert seen["B"] == ("A > B", 1)
    assert seen["C"] == ("C", 2)


def test_an_overlap_that_leaves_no_room_is_refused():
    with pytest.raises(ConfigError, match="at most 5"):
        chunks(Text("a b c"), COUNTER, 10, 6)


# How GPT-2 and Llama 3 cut text before they merge.
WAYS = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
    "llama3": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"""
    r"""\s*[\r\n]+|\s+(?!\S)|\s+""",
}


def byte_level(way: str):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(WAYS[way]), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([PROBE] * 8, trainer)
    return tokenizer


@given(WRITTEN)
def test_every_way_to_cut_takes_all_of_a_text(text):
    assert ["".join(cut.pattern.findall(text)) for cut in CUTS] == [text] * len(CUTS)


def found(text: str, cut) -> list[int]:
    """What the pattern finds, in bytes."""
    return [len(text[: match.end()].encode()) for match in cut.pattern.finditer(text)]


WHITE = st.text(st.sampled_from("ab1_.! \n\té日\u0440\xa0\x85\u2003\u3000\r"), max_size=40)


@settings(max_examples=400)
@given(WHITE | WRITTEN)
def test_pieces_are_those_that_the_pattern_finds(text):
    for cut in CUTS:
        assert ends_of(text.encode(), cut).tolist() == found(text, cut)


def test_pieces_of_every_short_text_are_those_that_the_pattern_finds():
    for letters in product("a. \n\té", repeat=5):
        text = "".join(letters)
        for cut in CUTS:
            assert ends_of(text.encode(), cut).tolist() == found(text, cut), repr(text)


def test_a_table_of_few_slots_gives_the_same_tokens(monkeypatch):
    text = Path(__file__).read_text(encoding="utf-8") + PROBE
    monkeypatch.setattr("mlxforge.knowledge.count.SLOTS", 3)
    small = Counter(COUNTER.tokenizer)
    first, second, usual = (one.pieces(text) for one in (small, small, COUNTER))
    assert len(small.table.tokens) == 8
    assert all((one == other).all() for one, other in zip((*first, *second), (*usual, *usual), strict=True))
    whole = [COUNTER.tokenizer.encode(piece).ids for piece in CUTS[0].pattern.findall(text)]
    assert usual[1].sum() == sum(map(len, whole))


@pytest.mark.parametrize("way", WAYS)
def test_counts_of_common_tokenizers_are_exact(way):
    tokenizer = byte_level(way)
    counter = Counter(tokenizer)
    assert counter.exact
    source = Path(__file__).read_text(encoding="utf-8") * 3
    for text in (source, PROBE * 50, "a " * 300 + "b" * 300 + "\n\n\n  c\n" + "-" * 200 + "\n"):
        assert counter.count(text) == len(tokenizer.encode(text, add_special_tokens=False).ids)


def test_a_word_of_many_tokens_and_a_character_of_many_are_counted_where_they_end():
    text = "👍🏽" * 40 + "漢" * 60
    ends, tokens = COUNTER.pieces(text)
    assert ends[-1] == len(text)
    assert (ends[1:] > ends[:-1]).all()
    assert tokens.sum() == len(COUNTER.tokenizer.encode(text, add_special_tokens=False).ids)
    assert (tokens > 0).all()


def test_a_tokenizer_that_merges_over_words_says_so():
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator([PROBE] * 8, trainers.BpeTrainer(vocab_size=400))
    assert not Counter(tokenizer).exact
