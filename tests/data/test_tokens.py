"""Tokens on disk: the text comes back whole, the cache is found again or rebuilt, the split is stable."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mlxforge.core.errors import DataError
from mlxforge.core.events import Event, Noted, Progress
from mlxforge.data import tokens as module
from mlxforge.data.pieces import anchor_ids, encode_pieces, pieces
from mlxforge.data.sources import parse_spec
from mlxforge.data.tokens import Encoder, TokenSet, prepare, split_by_hash

PROSE = st.text(st.sampled_from("ab .\n\n\r\té漢🦊0"), max_size=200)


@given(parts=st.lists(PROSE, max_size=5), size=st.integers(2, 40))
def test_pieces_join_to_the_text_however_it_comes(parts: list[str], size: int) -> None:
    found = list(pieces(parts, size))
    assert "".join(found) == "".join(parts)
    assert all(0 < len(piece) <= size for piece in found)
    assert found == list(pieces(["".join(parts)], size))


def test_pieces_end_after_a_newline_where_they_can() -> None:
    lines = [f"line {i} of a text.\n" for i in range(50)]
    assert all(piece.endswith(".\n") for piece in pieces(lines, 100))
    assert [piece[:1] for piece in pieces(["word " * 20], 32)] == ["w", " ", " ", " "]


@given(text=PROSE, size=st.integers(2, 40))
def test_the_tokens_of_pieces_decode_to_the_text(tokenizer: Tokenizer, text: str, size: int) -> None:
    cut = list(pieces([text], size))
    encoded = encode_pieces(tokenizer, cut, [i == 0 for i in range(len(cut))], anchor_ids(tokenizer))
    assert tokenizer.decode([token for ids in encoded for token in ids], skip_special_tokens=False) == text


def test_pieces_cut_after_lines_have_the_tokens_of_the_whole(tokenizer: Tokenizer) -> None:
    text = "The mill stands still, and it rains.\nA second line follows, with 12 numbers!\n" * 20
    cut = list(pieces([text], 120))
    encoded = encode_pieces(tokenizer, cut, [i == 0 for i in range(len(cut))], anchor_ids(tokenizer))
    assert len(cut) > 10
    assert [token for ids in encoded for token in ids] == tokenizer.encode(text, add_special_tokens=False).ids


class Project:
    """A folder with a cache, and everything that was said."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.encoder = Encoder(tokenizer, tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>"))
        self.heard: list[Event] = []

    def prepare(self, *specs: str, **settings: dict[str, str]) -> TokenSet:
        self.heard.clear()
        sources = [parse_spec(spec) for spec in specs]
        return prepare(sources, self.encoder, cache=Path("cache"), emit=self.heard.append, **settings)

    def text(self, tokens: TokenSet, index: int) -> str:
        sequence = tokens[index].tolist()
        assert (sequence[0], sequence[-1]) == (self.encoder.start_id, self.encoder.end_id)
        return str(self.encoder.tokenizer.decode(sequence[1:-1], skip_special_tokens=False))

    @property
    def notes(self) -> list[str]:
        return [event.message for event in self.heard if isinstance(event, Noted)]

    @property
    def progress(self) -> list[tuple[float, float]]:
        return [(event.done, event.total) for event in self.heard if isinstance(event, Progress)]


@pytest.fixture
def project(here: Path, tokenizer: Tokenizer) -> Project:
    return Project(tokenizer)


def rows(name: str, texts: list[str]) -> str:
    Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return name


def test_documents_come_back(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 64)
    long = "".join(f"Line {i} of the long document.\n" + "\n" * (i % 3) for i in range(50))
    texts = ["short", long, " lead", "漢字 🦊\r\n"]
    tokens = project.prepare(rows("a.jsonl", texts))
    assert [project.text(tokens, i) for i in range(len(tokens))] == texts
    assert tokens.bytes.tolist() == [len(text.encode()) for text in texts]
    assert tokens.trained == sum(len(tokens[i]) - 1 for i in range(4))
    assert tokens.lengths.tolist() == [len(tokens[i]) for i in range(4)]


def test_a_short_document_has_the_tokenizers_own_tokens(project: Project) -> None:
    tokens = project.prepare(rows("a.jsonl", ["The quick brown fox.\n\nA second paragraph"]))
    expected = project.encoder.tokenizer.encode("The quick brown fox.\n\nA second paragraph", add_special_tokens=False)
    assert tokens[0].tolist()[1:-1] == expected.ids


def test_duplicates_and_blank_documents_are_left_out_and_counted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 16)  # so that long duplicates are known only after they were written
    long = "a long document of many words\n" * 4 + "\n" * 40
    rows("a.jsonl", ["one", long, "", "one", " \n" * 40, long, "two"])
    Path("b.txt").write_text(long)
    tokens = project.prepare("a.jsonl", "b.txt@2")
    assert [project.text(tokens, i) for i in range(len(tokens))] == ["one", long, "two"]
    assert len(tokens.tokens) == tokens.lengths.sum(), "what is left out takes no room"
    assert project.notes == ["exact duplicate documents left out: 3", "documents without text left out: 2"]
    assert dict(tokens.counts) == {"documents": 3, "duplicates": 3, "blank": 2}
    project.prepare("a.jsonl", "b.txt")
    assert len(project.notes) == 2, "told again when the cache is used"


def test_weights_follow_the_sources(project: Project) -> None:
    rows("a.jsonl", ["one", "two"])
    rows("b.jsonl", ["three"])
    tokens = project.prepare("a.jsonl", "b.jsonl@0.5")
    assert tokens.weights.tolist() == [1.0, 1.0, 0.5]
    assert project.prepare("a.jsonl@3", "b.jsonl").weights.tolist() == [3.0, 3.0, 1.0]
    assert not project.progress, "a weight changes no token"


def test_the_second_time_nothing_is_read(project: Project) -> None:
    rows("a.jsonl", [f"document {i}" for i in range(50)])
    first = project.prepare("a.jsonl")
    done, total = project.progress[-1]
    assert done == total == Path("a.jsonl").stat().st_size
    Path("a.jsonl").rename("renamed.jsonl")
    second = project.prepare("renamed.jsonl")
    assert not project.progress
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.hash == second.hash


def test_the_cache_follows_content_tokenizer_and_settings(project: Project) -> None:
    Path("a.jsonl").write_text('{"text": "one", "body": "two"}\n')
    project.prepare("a.jsonl")
    project.prepare("a.jsonl", mapping={"text": "body"})
    assert project.progress
    project.encoder = replace(project.encoder, end_id=project.encoder.start_id)
    project.prepare("a.jsonl")
    assert project.progress
    project.encoder = replace(project.encoder, tokenizer=Tokenizer.from_str(project.encoder.tokenizer.to_str()))
    project.prepare("a.jsonl")
    assert not project.progress
    Path("a.jsonl").write_text('{"text": "three"}\n')
    assert project.text(project.prepare("a.jsonl"), 0) == "three"


@pytest.mark.parametrize("name", ["tokens.bin", "stops.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_cache_is_rebuilt(project: Project, name: str, damage: str) -> None:
    whole = project.prepare(rows("a.jsonl", ["one", "two"])).tokens.tolist()
    (path,) = Path("cache").glob(f"*/{name}")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    assert project.prepare("a.jsonl").tokens.tolist() == whole
    assert project.progress
    project.prepare("a.jsonl")
    assert not project.progress


@pytest.mark.parametrize("content", ['{"text": "good"}\n{\n', '{"text": " "}\n{"text": "\\n"}\n'])
def test_a_failure_leaves_nothing_behind(project: Project, content: str) -> None:
    Path("a.jsonl").write_text(content)
    with pytest.raises(DataError):
        project.prepare("a.jsonl")
    assert not list(Path("cache").iterdir())


def test_no_text_at_all_is_one_line(project: Project) -> None:
    Path("a.jsonl").write_text('{"text": " "}\n{"text": "\\n"}\n')
    with pytest.raises(DataError) as caught:
        project.prepare("a.jsonl")
    assert str(caught.value) == "a.jsonl: no text is left after filtering (2 documents hold white space only)"


def test_a_tokenizer_that_truncates_cuts_nothing(project: Project) -> None:
    copy = Tokenizer.from_str(project.encoder.tokenizer.to_str())
    copy.enable_truncation(3)
    copy.enable_padding(length=8)
    project.encoder = replace(project.encoder, tokenizer=copy)
    text = "a document longer than three tokens"
    assert project.text(project.prepare(rows("a.jsonl", [text])), 0) == text
    assert copy.truncation is not None


def test_ids_take_two_bytes_where_they_fit(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert project.prepare(rows("a.jsonl", ["x"])).tokens.dtype == np.uint16
    project.encoder = replace(project.encoder, end_id=1 << 16)
    tokens = project.prepare("a.jsonl")
    assert tokens.tokens.dtype == np.uint32
    assert tokens[0][-1] == 1 << 16


def many(project: Project, texts: list[str]) -> TokenSet:
    return project.prepare(rows("many.jsonl", texts))


def test_the_split_follows_each_documents_own_text(project: Project) -> None:
    texts = [f"document {i}" for i in range(300)]

    def held_out(given: list[str]) -> set[str]:
        train, valid = split_by_hash(many(project, given), 0.2)
        assert len(train) + len(valid) == len(given)
        return {project.text(valid, i) for i in range(len(valid))}

    first = held_out(texts)
    assert 30 < len(first) < 90
    assert held_out(random.Random(0).sample(texts, 300)) == first
    assert held_out([*texts, "another", "and one more"]) - {"another", "and one more"} == first


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_neither_part_of_a_split_is_empty(project: Project, count: int, share: float) -> None:
    train, valid = split_by_hash(many(project, [f"document {i}" for i in range(count)]), share)
    assert len(train) >= 1
    assert len(valid) >= 1


def test_a_lone_document_and_a_share_of_zero_are_all_training(project: Project) -> None:
    train, valid = split_by_hash(many(project, ["one"]), 0.999)
    assert (len(train), len(valid)) == (1, 0)
    train, valid = split_by_hash(many(project, ["one", "two"]), 0.0)
    assert (len(train), len(valid)) == (2, 0)


def test_validation_text_can_be_kept_out_of_training(project: Project) -> None:
    train = many(project, ["one", "two", "three"])
    valid = project.prepare(rows("valid.jsonl", ["two", "four"]))
    left = train.without(valid)
    assert [project.text(left, i) for i in range(len(left))] == ["one", "three"]
