"""Cleaning: what each step takes out and what it leaves, counted, and nothing where it is turned off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxforge.core.errors import ConfigError
from mlxforge.knowledge.clean import STEPS, assemble, chosen, clean
from mlxforge.knowledge.language import language
from mlxforge.knowledge.readers.base import Block, Entry, Parsed


def cleaned(*texts: str, kind: str = "pdf", steps: tuple[str, ...] = tuple(STEPS)) -> tuple[list[str], dict[str, int]]:
    parsed = Parsed([Block(text, page=number) for number, text in enumerate(texts, 1)])
    counts = clean(parsed, kind, steps)
    return [block.text for block in parsed.blocks], counts


def test_headers_that_neighbouring_pages_repeat_go_and_a_line_that_recurs_far_off_stays():
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
    pages = [f"Mill report {n}\nThe {word} begins.\nIt goes on.\nEnd of {word}.\n\n{n} of 9\n" for n, word in enumerate(words)]
    texts, counts = cleaned(*pages, steps=("headers",))
    assert texts == [f"The {word} begins.\nIt goes on.\nEnd of {word}.\n\n" for word in words]
    assert counts == {"headers": 20}
    far = [f"{'Example' if n in (0, 4, 9) else word} starts\n{word} one\n{word} two\n" for n, word in enumerate(words)]
    assert cleaned(*far, steps=("headers",)) == (far, {})


@pytest.mark.parametrize("line", ["12", "- 12 -", "Page 3 of 9", "xiv", "Seite 4"])
def test_page_numbers_at_the_edge_go(line):
    assert cleaned(f"The mill.\n{line}\n", steps=("page-numbers",)) == (["The mill.\n"], {"page-numbers": 1})


@pytest.mark.parametrize("text", ["The mill.\n12 sacks\n", "12\n", "The\n12\nmill.\n"])
def test_other_numbers_stay(text):
    assert cleaned(text, steps=("page-numbers",)) == ([text], {})


def test_broken_words_are_made_whole_and_compounds_keep_their_hyphen():
    texts, counts = cleaned(
        "The re-\npair of a well-\nknown mill, a well-known one, by Jean-\nPaul in 1984-\n1985, co-\noperate.\n",
        "Both co-operate and cooperate.\n",
        steps=("hyphens",),
    )
    assert texts[0] == "The repair of a well-known mill, a well-known one, by Jean-Paul in 1984-\n1985, cooperate.\n"
    assert counts == {"hyphens": 4}


def test_small_steps():
    assert cleaned("ﬁne ﬂour, oﬃce", steps=("ligatures",)) == (["fine flour, office"], {"ligatures": 3})
    assert cleaned("a\r\nb\rc\x0cd\x07e\ufeff\tf", steps=("control",)) == (["a\nb\nc\nde\tf"], {"control": 5})
    assert cleaned("cafe\u0301", steps=("nfc",)) == (["café"], {"nfc": 1})
    assert cleaned("1 Mills . . . . . . 12\nText.\n2 Wheels.......14\n", steps=("leaders",)) == (["Text.\n"], {"leaders": 2})
    assert cleaned("a  \n\n\n\n\nb\n", steps=("spaces",)) == (["a\n\n\nb\n"], {"spaces": 2})


def test_navigation_goes_unless_the_page_is_nothing_else():
    menu = Block("Home\n\n", role="navigation")
    page = Parsed([menu, Block("Text.\n\n")])
    assert clean(page, "html", chosen(())) == {"navigation": 1}
    assert page.text == "Text.\n\n"
    alone = Parsed([Block("Home\n\n", role="navigation")])
    assert clean(alone, "html", chosen(())) == {}
    assert alone.text == "Home\n\n"


def test_steps_for_pages_leave_text_files_alone():
    text = "12\nwell-\nknown   \n1 Mills . . . . . . 12\n\n\n\n\n13\n"
    assert cleaned(text, kind="text") == ([text], {})
    letters = "'\ufb01' != 'e\u0301'"
    assert cleaned(letters, kind="python") == ([letters], {})
    assert cleaned(letters, kind="markdown") == (["'fi' != '\u00e9'"], {"ligatures": 1, "nfc": 1})


@given(st.text())
def test_with_every_step_turned_off_nothing_changes(text):
    assert cleaned(text, steps=chosen(STEPS)) == ([text], {})


@given(st.lists(st.text(alphabet="ab-1. \n\rﬁ\u0301\x0c", max_size=60), max_size=5))
def test_cleaning_twice_is_cleaning_once_for_characters(texts):
    steps = ("control", "ligatures", "nfc")
    once, _ = cleaned(*texts, steps=steps)
    assert cleaned(*once, steps=steps) == (once, {})


def test_an_unknown_step_is_named():
    with pytest.raises(ConfigError, match="no cleaning step 'header'") as caught:
        chosen(["header"])
    assert "did you mean 'headers'?" in str(caught.value)


def test_a_document_knows_its_headings_and_pages():
    parsed = Parsed(
        [Block("Intro.\n", page=1), Block("", page=2), Block("2 The  Wheel\nIt turns.\n", page=3)],
        contents=[Entry(1, "The Wheel", 3), Entry(2, "Missing", 3), Entry(1, "Beyond", 9)],
    )
    text = assemble(parsed)
    assert text.pages == [0, 7, 7]
    assert text.headings == [(7, 1, "The Wheel")]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The mill stands by the river and its wheel is the work of the miller. " * 3, "en"),
        ("Die Mühle steht an dem Fluss und das Rad ist nicht mit der Hand zu drehen. " * 3, "de"),
        ("Le moulin est dans la vallée et les sacs sont avec la farine pour le pain. " * 5, "fr"),
        ("水車小屋は川のそばに立っている。", "ja"),
        ("Мельница стоит у реки", "ru"),
        ("磨坊站在河边", "zh"),
        ("x = 1; y = 2", None),
        ("", None),
    ],
)
def test_the_language_is_told_where_it_is_clear(text, code):
    assert language(text) == code
