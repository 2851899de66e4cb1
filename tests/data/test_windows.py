"""Windows: each target is trained exactly once, and cuts fall on the strongest boundary of a window's last half."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mlxforge.data import windows as module
from mlxforge.data.boundaries import BREAK, HARD, LINE, SENTENCE, Marks, strengths, token_marks
from mlxforge.data.tokens import TokenSet
from mlxforge.data.windows import Windows, cuts, windows

PIECES = ["x", " x", ".", "!\n", "\n", "\n\n", " ", "。", '."']
KINDS: Marks = np.array([0, 16, 8, 9, 5, 7, 20, 32, 8], np.uint8)  # the marks of PIECES


def token_set(documents: list[list[int]], marks: Marks = KINDS) -> TokenSet:
    lengths = np.array([len(document) for document in documents], np.int64)
    stops = lengths.cumsum()
    count = len(documents)
    return TokenSet(
        tokens=np.array([token for document in documents for token in document], np.uint16),
        starts=stops - lengths,
        stops=stops,
        bytes=lengths,
        digests=np.zeros((count, 16), np.uint8),
        source=np.zeros(count, np.int64),
        source_weights=(1.0,),
        marks=marks,
    )


DOCUMENTS = st.lists(st.lists(st.integers(0, len(PIECES) - 1), min_size=2, max_size=80), min_size=1, max_size=6)


@given(documents=DOCUMENTS, max_length=st.integers(1, 30))
def test_each_target_is_trained_exactly_once(documents: list[list[int]], max_length: int) -> None:
    found = windows(token_set(documents), max_length)
    targets: list[list[int]] = [document[:1] for document in documents]
    for i in range(len(found)):
        row = found[i]
        assert 1 <= len(row.tokens) - 1 == found.lengths[i] <= max_length
        assert row.tokens[0] == targets[found.document[i]][-1], "a window starts with the last token of the one before"
        targets[found.document[i]] += row.tokens[1:].tolist()
    assert targets == documents
    assert found.trained.sum() == found.tokens.trained == sum(len(document) - 1 for document in documents)


def best_cut(sequence: list[int], start: int, max_length: int) -> int:
    """The slow way: every allowed stop, the strongest, the latest of equals."""
    strong = strengths(np.array(sequence), KINDS)
    allowed = range(start + (max_length + 1) // 2 + 1, start + max_length + 2)
    return max(allowed, key=lambda stop: (strong[stop - 1], stop))


@given(sequence=st.lists(st.integers(0, len(PIECES) - 1), min_size=2, max_size=200), max_length=st.integers(2, 30))
@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_a_window_ends_at_the_best_boundary_of_its_last_half(sequence: list[int], max_length: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = list(cuts(np.array(sequence), max_length, KINDS))
    expected, start = [], 0
    while len(sequence) - start - 1 > max_length:
        expected.append(best_cut(sequence, start, max_length))
        start = expected[-1] - 1
    assert found == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["x", "\n\n", "x"], [HARD, BREAK, HARD]),
        (["x", "\n", "\n", "x"], [HARD, LINE, BREAK, HARD]),
        (["!\n", "\n", "x"], [LINE, BREAK, HARD]),
        (["\n", "x", "\n", "x"], [LINE, HARD, LINE, HARD]),
        (["x", ".", " x"], [HARD, SENTENCE, HARD]),
        (["x", ".", "x"], [HARD, HARD, HARD]),
        (["x", '."', " x"], [HARD, SENTENCE, HARD]),
        (["x", "。", "x"], [HARD, SENTENCE, HARD]),
    ],
)
def test_strength_of_boundaries(texts: list[str], expected: list[int]) -> None:
    assert strengths(np.array([PIECES.index(text) for text in texts]), KINDS).tolist() == expected


def test_marks_are_read_from_the_tokens_text(tokenizer: Tokenizer) -> None:
    marks = token_marks(tokenizer, tokenizer.get_vocab_size())

    def strength(text: str) -> list[int]:
        found: list[int] = strengths(np.array(tokenizer.encode(text, add_special_tokens=False).ids), marks).tolist()
        return found

    assert strength("the mill.\n\n")[-1] == BREAK
    assert strength("the mill\n")[-1] == LINE
    assert SENTENCE in strength("the mill. It")
    assert set(strength("1.5 the mill")) == {HARD}


def test_documents_keep_their_order_and_weights() -> None:
    tokens = token_set([[0] * 5, [0] * 50, [0] * 3])
    found = windows(tokens, 10)
    assert found.document.tolist() == [0, *[1] * (len(found) - 2), 2]
    assert (np.diff(found.start[1:-1]) > 0).all()
    assert found.weights.tolist() == [1.0] * len(found)
    empty: Windows = windows(tokens.subset(np.zeros(3, np.bool_)), 10)
    assert len(empty) == 0
