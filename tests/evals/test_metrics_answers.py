"""Metrics of answers: golden values by SQuAD's rules, the same as rouge-score and sacrebleu, and what holds of any answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from mlxforge.evals.answers import exact, f1, normalized
from mlxforge.evals.graded import Graded
from mlxforge.evals.metrics import METRICS, column, compare, remarks, value

REFERENCED = ("exact_match", "f1", "rouge1", "rouge2", "rougeL")
TEXT = st.text(alphabet=st.sampled_from([*"abtheAn ,.é1_\n"]), max_size=30)


def rows(*pairs):
    return [Graded(answer=answer, references=(right,) if isinstance(right, str) else tuple(right)) for answer, right in pairs]


def figure(name, graded):
    return value(column(METRICS[name], graded)).value


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Cat sat, on a mat.", "cat sat on mat"),
        ("  an   apple\tA\n", "apple"),
        ("U.S.A.", "usa"),  # punctuation goes before words are told apart: three letters become one word
        ("a-the-n", "athen"),
        ("The “Mill” — 1,204", "“mill” — 1204"),  # the rule knows ASCII punctuation alone
        ("theatre another", "theatre another"),
        ("the", ""),
    ],
)
def test_squad_normalisation(text, plain):
    assert normalized(text) == plain


@pytest.mark.parametrize(
    ("answer", "reference", "same", "shared"),
    [
        ("The Denver Broncos!", "denver broncos", 1, 1),
        ("in the city of Paris", "Paris", 0, 2 * (1 / 4) * 1 / (1 / 4 + 1)),
        ("red red blue", "red green", 0, 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),  # one red is shared, not two
        ("left", "right", 0, 0),
        ("the", "a", 1, 1),  # nothing is left of either
        ("the", "mill", 0, 0),
    ],
)
def test_exact_match_and_f1_by_hand(answer, reference, same, shared):
    assert exact(answer, reference) == same
    assert f1(answer, reference) == pytest.approx(shared)


def test_the_best_reference_counts():
    graded = rows(("Paris", ("Lyon", "paris.", "Nice")), ("big red mill", ("mill", "the red mill")))
    assert figure("exact_match", graded) == 0.5
    assert column(METRICS["f1"], graded).scores() == [1.0, pytest.approx(2 * (2 / 3) / (2 / 3 + 1))]


@pytest.mark.parametrize("name", REFERENCED)
def test_an_empty_answer_is_worth_nothing_even_where_nothing_was_expected(name):
    graded = rows(("", "Paris"), (" \n", "the"), ("", ""), ("Paris", "Paris here"))
    assert column(METRICS[name], graded).scores()[:3] == [0.0, 0.0, 0.0]
    assert value(column(METRICS[name], graded)).n == 4
    assert remarks(graded) == ["3 of 4 answers are empty: they count as wrong"]


def test_no_remark_where_every_answer_has_words():
    assert remarks(rows(("a", "a"))) == []


def test_rows_without_an_answer_are_left_out():
    graded = [Graded(references=("x",)), *rows(("x", "x"))]
    one = column(METRICS["exact_match"], graded)
    assert one.scores() == [None, 1.0]
    assert value(one).n == 1


@given(TEXT, TEXT)
@settings(max_examples=60, deadline=None)
def test_rouge_is_rouge_scores_own_where_the_text_is_ascii(answer, reference):
    answer, reference = (text.replace("é", "e") for text in (answer, reference))
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, answer)
    for name in ("rouge1", "rouge2", "rougeL"):
        expected = theirs[name].fmeasure if answer.strip() else 0.0
        assert figure(name, rows((answer, reference))) == pytest.approx(expected)


def test_rouge_reads_other_scripts():
    assert figure("rouge1", rows(("Ключ у мельника", "ключ лежит у мельника"))) == pytest.approx(2 * 3 / (3 + 4))
    assert figure("rougeL", rows(("Die Mühle", "die Muhle"))) == pytest.approx(0.5)  # not "m" and "hle"


BLEU_ROWS = [
    ("The cat sat on the mat.", "The cat sat on a mat."),
    ("A mill stands by the river and turns", "The mill stands by the river, and its wheel turns."),
    ("no", "yes, it does."),
    ("", "an empty answer costs its length"),
    ("red mill", "red mill"),
]


def test_corpus_bleu_is_sacrebleus_own():
    answers, references = zip(*BLEU_ROWS, strict=True)
    theirs = BLEU().corpus_score(list(answers), [list(references)]).score
    assert figure("bleu", rows(*BLEU_ROWS)) == pytest.approx(theirs)


def test_bleu_is_smoothed_as_sacrebleu_does_where_no_long_phrase_matches():
    pairs = [
        ("the mill is by the old river", "a mill stood near that old bridge"),
        ("red mill here now", "the red mill stands"),
    ]
    answers, references = zip(*pairs, strict=True)
    theirs = BLEU().corpus_score(list(answers), [list(references)]).score
    one = column(METRICS["bleu"], rows(*pairs))
    assert value(one).value == pytest.approx(theirs)
    assert theirs > 1
    alone = [BLEU(effective_order=True).sentence_score(answer, [reference]).score for answer, reference in pairs]
    assert one.scores() == pytest.approx(alone)


def test_corpus_bleu_of_answers_under_four_words_is_0_and_their_rows_are_not():
    """No 4-gram can match: sacrebleu's corpus figure is 0, its sentence figure leaves long n-grams out."""
    one = column(METRICS["bleu"], rows(("red mill", "red mill"), ("Paris", "Paris")))
    assert value(one).value == BLEU().corpus_score(["red mill", "Paris"], [["red mill", "Paris"]]).score == 0
    assert one.scores() == pytest.approx([100, 100])


def test_corpus_bleu_of_several_references():
    answers, references = zip(*BLEU_ROWS[:2], strict=True)
    more = ["The cat lay down on the mat.", "A mill stands at the river."]
    theirs = BLEU().corpus_score(list(answers), [list(references), more]).score
    graded = rows(*((answer, (one, other)) for answer, one, other in zip(answers, references, more, strict=True)))
    assert figure("bleu", graded) == pytest.approx(theirs)


def test_rows_show_sentence_bleu():
    one = column(METRICS["bleu"], rows(*BLEU_ROWS))
    theirs = [BLEU(effective_order=True).sentence_score(answer, [reference]).score for answer, reference in BLEU_ROWS]
    assert one.scores() == pytest.approx(theirs)


def test_the_interval_of_bleu_is_of_the_corpus_figure():
    found = value(column(METRICS["bleu"], rows(*BLEU_ROWS)))
    assert found.low < found.value < found.high
    assert found.unit == "of 100"


def test_stop_rate_and_repetition_by_hand():
    graded = [
        Graded(answer="one two three four five", finish="stop"),
        Graded(answer="a a a a a a a", finish="length"),  # four 4-grams, one distinct
        Graded(answer="a b c d a b c d", finish="length"),  # five 4-grams, four distinct
        Graded(answer="", finish="stop"),
        Graded(answer="nobody knows", finish=None),
    ]
    assert column(METRICS["stop_rate"], graded).scores() == [1.0, 0.0, 0.0, 1.0, None]
    assert column(METRICS["repetition"], graded).scores() == [0.0, 0.75, pytest.approx(0.2), None, 0.0]


@given(st.lists(st.tuples(TEXT, TEXT), min_size=2, max_size=12), st.randoms())
@settings(max_examples=15, deadline=None)
def test_the_order_of_rows_changes_nothing(pairs, random):
    moved = list(pairs)
    random.shuffle(moved)
    for name in (*REFERENCED, "bleu", "repetition"):
        assert value(column(METRICS[name], rows(*pairs))) == value(column(METRICS[name], rows(*moved)))


@given(st.lists(TEXT.filter(str.strip), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_identical_answers_are_right(texts):
    graded = rows(*zip(texts, texts, strict=True))
    assert figure("exact_match", graded) == figure("f1", graded) == 1.0


@given(st.lists(st.tuples(TEXT, TEXT), min_size=2, max_size=12))
@settings(max_examples=12, deadline=None)
def test_every_interval_holds_its_figure_and_no_model_differs_from_itself(pairs):
    for name in ("exact_match", "f1", "rouge1", "bleu"):
        one = column(METRICS[name], rows(*pairs))
        found = value(one)
        assert 0 <= found.low <= found.value <= found.high <= (100.0001 if name == "bleu" else 1)
        tested = compare(one, one, "set", "a", "b")
        assert (tested.difference, tested.low, tested.high, tested.p) == (0, 0, 0, 1)


def test_f1_is_never_under_exact_match():
    pairs = [("the red mill", "red mill"), ("mill", "red mill"), ("x", "y")]
    same, shared = (column(METRICS[name], rows(*pairs)).scores() for name in ("exact_match", "f1"))
    assert all(low <= high for low, high in zip(same, shared, strict=True))
    assert not any(map(math.isnan, shared))
