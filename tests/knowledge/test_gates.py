"""Gates: each refuses what it is for and lets the rest through; prompts, sampling and the plan."""

from __future__ import annotations

from collections import Counter

import pytest

from mlxforge.core.errors import ConfigError, DataError
from mlxforge.knowledge.gates import Candidate, Passage, find_quote, names, numbers, refused
from mlxforge.knowledge.sampling import _spread, passage, plan, sample
from mlxforge.knowledge.store import Chunk, Document, open_store
from mlxforge.knowledge.styles import STYLES
from mlxforge.knowledge.templates import PROMPTS, read_prompt

TEXT = "The mill of Aldmouth was built in 1,830. Its wheel has twelve paddles of oak, and the miller grinds barley."
PASSAGE = Passage("/a.md", "Handbook", 3, "Aldmouth > Mill", TEXT, 100, (100, 100 + len(TEXT)))
GOOD = {
    "question": "When was the mill of Aldmouth built?",
    "answer": "The mill of Aldmouth was built in 1830.",
    "quote": "mill of Aldmouth was built in 1,830",
}


def gate(style="factual", **changes):
    return refused(Candidate(STYLES[style], {**GOOD, **changes}, PASSAGE))


def test_a_good_row_passes_and_tells_its_span():
    assert gate() == ("", "")
    begin, end = Candidate(STYLES["factual"], GOOD, PASSAGE).span
    assert TEXT[begin - 100 : end - 100] == GOOD["quote"]
    assert Candidate(STYLES["factual"], {**GOOD, "quote": "no such words here"}, PASSAGE).span == PASSAGE.span
    edited = Passage("/a.md", "Handbook", 3, "", TEXT, None, (7, 9))
    assert Candidate(STYLES["factual"], GOOD, edited).span == (7, 9)


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"answer": 3}, "schema", "answer: integer, not string"),
        ({"more": "x"}, "schema", "unknown key 'more'"),
        ({"question": "Mill?"}, "length", "question: 5 characters, not 12 to 400"),
        ({"answer": "x" * 601}, "length", "answer: 601 characters"),
        ({"question": "According to the passage, when was the mill built?"}, "reference", "According to the passage"),
        ({"answer": "As mentioned above, the mill was built in 1830."}, "reference", "mentioned above"),
        ({"question": "Wann wurde laut dem Text die Mühle von Aldmouth gebaut?"}, "reference", "laut dem Text"),
        ({"question": "When was it built, and by whom?"}, "subject", "names nothing"),
        ({"answer": "The mill of Aldmouth was built in 1831."}, "grounded", "has no 1831"),
        ({"answer": "Ferries carry sugar towards distant harbours."}, "grounded", "quote found, 0%"),
        ({"answer": "The mill, owned by Pemberton, was built.", "quote": "a quote that is not there"}, "grounded", "no quote"),
        ({"answer": "The mill of Pemberton was built in Aldmouth.", "quote": "not there at all"}, "grounded", "no pemberton"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(changes, name, told):
    found, reason = gate(**changes)
    assert found == name, reason
    assert told in reason


@pytest.mark.parametrize(
    "changes",
    [
        {"quote": "MILL of Aldmouth — was built\nin 1,830"},  # whatever stands between the words
        {"quote": "words that are nowhere", "answer": "The wheel of the mill has paddles of oak."},
        {"question": "How many paddles has the wheel?", "answer": "Twelve paddles.", "quote": "wheel has twelve paddles"},
        {"question": "Which text does the miller of Aldmouth read?"},
    ],
)
def test_what_passes(changes):
    assert gate(**changes) == ("", "")


def test_styles_have_their_own_measure():
    solved = {"problem": "The mill of Aldmouth is to turn 200 years old. In which year is that?", "quote": GOOD["quote"]}
    steps = {"steps": "It was built in 1830. 1830 and 200 are 2030.", "answer": "In 2030."}
    assert refused(Candidate(STYLES["problem-solving"], {**solved, **steps}, PASSAGE)) == ("", "")
    unknown = {
        "question": "Who built the mill of Aldmouth?",
        "answer": "Nobody has written that down.",
        "quote": "built in 1,830",
    }
    assert refused(Candidate(STYLES["unanswerable"], unknown, PASSAGE)) == ("", "")
    choice = dict.fromkeys(("choice_a", "choice_b", "choice_c", "choice_d"), "oak")
    row = {"question": "Of what are the paddles of Aldmouth's wheel?", **choice, "choice_b": "elm", "correct": "B"}
    candidate = Candidate(STYLES["multiple-choice"], {**row, "explanation": "They are of elm.", "quote": "x"}, PASSAGE)
    assert candidate.turns == [f"{row['question']}\n\nA. oak\nB. elm\nC. oak\nD. oak", "B. elm\n\nThey are of elm."]


def test_words():
    assert names("The Gate of Old Town. Every day in K2 the NATO opens") == {"gate", "old", "town", "k2", "nato"}
    assert numbers("1,830 and 3.5 and 12'000") == {"1830", "3.5", "12000"}
    assert find_quote("of the", "one of the two") is None  # says nothing
    assert find_quote("水车有十二个木制叶片。它很老了", "这个水车有十二个木制叶片，它很老了。") == (2, 17)


def test_every_style_has_its_prompt_and_users_may_change_it(tmp_path):
    for style in STYLES:
        prompt = read_prompt(style)
        system, user = prompt.filled(
            {"passage": "{title} stays", "title": "T", "count": "2", "heading": "H", "audience": "nurses"}
        )
        assert (system["role"], user["role"]) == ("system", "user")
        assert "{title} stays" in user["content"]
        assert "nurses" in user["content"]
    mine = tmp_path / "factual.md"
    mine.write_text("Ask about {passage}")
    assert read_prompt("factual", tmp_path).filled({"passage": "mills"}) == ({"role": "user", "content": "Ask about mills"},)
    assert read_prompt("socratic", tmp_path).path.parent == PROMPTS
    mine.write_text("Be kind.\n---\nRead\n{pasage}")
    with pytest.raises(ConfigError, match=r"factual.md:4: no value for \{pasage\} \(did you mean 'passage'\?\)"):
        read_prompt("factual", tmp_path)
    mine.write_text("Ask.")
    with pytest.raises(ConfigError, match="no place for"):
        read_prompt("factual", tmp_path)
    with pytest.raises(ConfigError, match="mlxforge synth prompts"):
        read_prompt("factual", tmp_path / "none")


@pytest.fixture
def kb(tmp_path):
    """Documents of 1 to 20 chunks; the last two are equal."""
    path = tmp_path / "kb.sqlite"
    with open_store(path, create=True) as store, store.writing():
        for number in range(20):
            parts = [f"Chunk {part} of document {number} is about the mill. ".ljust(90, "x") for part in range(1 + number)]
            chunks = [Chunk(text, 20, "", None, 90 * i, 90 * i + 90, 0) for i, text in enumerate([*parts, "short"])]
            put = Document(f"/d/{number}", "/d", f"h{min(number, 18)}", f"D{number}", "text", "en", 1, "s", "{}")
            store.put(put, chunks)
    return path


def test_sampling_is_even_and_splits_by_document(kb):
    with open_store(kb) as store:
        sampled = sample(store, 0, 0.2, 0.2)
        where = {row["id"]: row["path"] for row in store.rows("SELECT id, path FROM current")}
        parts = {}
        for chunk, split in sampled.chunks:
            assert parts.setdefault(where[chunk], split) == split
        assert parts["/d/18"] == parts["/d/19"]  # equal content
        assert set(parts.values()) == {"train", "valid", "test"}
        assert (len(sampled.chunks), sampled.short) == (210, 20)
        assert {where[chunk] for chunk, _ in sampled.chunks[:20]} == set(where.values())
        assert Counter(where[chunk] for chunk, _ in sampled.chunks[:39])["/d/0"] == 1
        assert sample(store, 0, 0.2, 0.2) == sampled
        assert sample(store, 1, 0.2, 0.2).chunks != sampled.chunks
        with store.writing() as connection:
            connection.execute("INSERT INTO edits VALUES (1, ?, 9, 'now')", ("The mill was sold. " * 9,))
        assert sample(store, 0, 0.2, 0.2).digest != sampled.digest
        found = passage(store, 1)
        assert (found.text, found.start, found.span) == ("The mill was sold. " * 9, None, (0, 90))
    assert _spread(8) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_the_plan_takes_styles_in_turn_and_a_larger_limit_adds_to_its_end(kb):
    styles = ["factual", "socratic"]
    with open_store(kb) as store:
        sampled = sample(store, 0, 0.0, 0.0)
    tasks = list(plan(sampled, styles, 3, None))
    rows = Counter()
    for task in tasks:
        rows[task.style] += task.request["count"]
    assert rows == {"factual": 315, "socratic": 315}
    few = list(plan(sampled, styles, 3, 10))
    assert sum(task.request["count"] for task in few) == 10
    assert few[:-1] == tasks[: len(few) - 1]
    assert [task.number for task in tasks] == list(range(len(tasks)))


def test_nothing_to_ask_about(tmp_path):
    with open_store(tmp_path / "kb.sqlite", create=True) as store:
        with pytest.raises(DataError, match=r"no chunks \(add documents: mlxforge ingest PATH --into"):
            sample(store, 0, 0.1, 0.1)
        with store.writing():
            store.put(Document("/d/1", "/d", "h", "D", "text", "en", 1, "s", "{}"), [Chunk("tiny", 1, "", None, 0, 4, 0)])
        with pytest.raises(DataError, match="1 chunks of less than 80 characters"):
            sample(store, 0, 0.1, 0.1)
