"""``mlxforge synth expand``: entities by their form, groups of them, passages that their source bears."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from writer_server import make_store, writer

from mlxforge.cli.synth_expand import expand as command
from mlxforge.core.errors import DataError, MlxforgeError, RunFailed
from mlxforge.knowledge import expand
from mlxforge.knowledge.asked import ProviderSettings
from mlxforge.knowledge.entities import Entity, entities, known, names, phrases
from mlxforge.knowledge.gates import Passage
from mlxforge.knowledge.store import open_store
from mlxforge.runs.review import open_review
from mlxforge.runs.synth_expand import ExpandSettings, estimate_expand, synth_expand

MILL = "The mill of Varn was built by Ada Lorne in 1820. Visitors pay 3 pence at the mill.\n\n"
LAMP = "Ada Lorne also gave Varn its lamp. The lamp is lit by Bo Tarn. Nobody else may light it.\n"
DOCUMENTS = {
    "varn.md": [MILL, LAMP],
    "inn.md": ["The Grey Inn in Holm is kept by Cora Vane. Cora Vane bakes rye bread there.\n"],
}


def write(messages):
    """A passage of the source's own words, each sixth another, or the list of its names."""
    prompt = messages[-1]["content"]
    passage = re.search(r"<passage>\n(.*?)\n</passage>", prompt, re.DOTALL)[1]
    if '{"entities"' in prompt:
        return json.dumps({"entities": ["Ada Lorne", "Atlantis"] if "Ada" in passage else ["Cora Vane", "The Grey Inn"]})
    subject = re.search(r"(?:about|related): (.*)", prompt)[1]
    words = passage.split()
    passage = " ".join(" ".join([*words[place : place + 5], "indeed"]) for place in range(0, len(words), 5))
    return json.dumps(
        {"passage": f"{subject}. {passage} So much is known of {subject} today, and it is told often.".ljust(200, ".")}
    )


@pytest.fixture
def kb(tmp_path):
    return make_store(tmp_path / "kb.sqlite", DOCUMENTS)


@pytest.fixture
def server():
    with writer(write) as running:
        yield running


def reached(server):
    return ProviderSettings(url=server.url, concurrency=2)


def run(kb, server, tmp_path, **changes):
    out = changes.pop("out", tmp_path / "out.jsonl")
    more = {name: changes.pop(name) for name in ("rejects", "force", "redo") if name in changes}
    chosen = ExpandSettings(**{"provider": "openai", "near": 1.0, **changes})
    result = synth_expand(kb, out, chosen, reached(server), **more)
    return result, [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The mill was built by Ada Lorne. It is old.", ["Ada Lorne"]),
        ("Leonard Cand keeps it.", ["Leonard Cand"]),  # two capitals cannot be the sentence's
        ("Old records show it. It is in the old hall.", []),
        ("Records are kept. Ask for Records there.", ["Records"]),
        ("the Isle of Varn and the Sea", ["Isle of Varn", "Sea"]),
        ("She met Ada\nLorne there.", ["Ada Lorne"]),
        ("She met Ada.\n\nLorne was there.", ["Ada"]),
        ("See Varn. One goes to Varn.", ["Varn"]),
        ("We use GPT-4 and the T5 model", ["GPT-4", "T5"]),
        ("", []),
        ("知識 は ここ に ある", []),
    ],
)
def test_names_are_runs_of_capitals_that_no_sentence_explains(text, found):
    assert names(text) == found


def test_phrases_come_three_times_and_hold_no_stop_word():
    text = "rye bread is good. We like rye bread, and rye bread keeps. of the old. of the old. of the old."
    assert phrases(text) == ["rye bread"]
    assert phrases("fresh rye bread. " * 3) == ["fresh rye bread"]


def test_an_entity_is_what_the_document_has_and_not_a_part_of_a_longer_one():
    chunks = [(0, "Ada Lorne built it. ADA  LORNE left.", ""), (1, "Lorne came; Lornes did not.", "")]
    assert known(["Ada Lorne", "ada lorne", "Ada", "Lorne", "Atlantis"], chunks, 9) == [
        Entity("Ada Lorne", ((0, 2),)),
        Entity("Lorne", ((1, 1),)),
    ]


def test_headings_count_and_the_most_named_come_first():
    chunks = [
        (0, "Opening hours are long. Varn is far.", "Varn > 2.1 Opening hours"),
        (1, "Holm is near; you see Varn.", "Varn"),
    ]
    assert [(one.name, one.times) for one in entities(chunks, 9)] == [("Varn", 2), ("Opening hours", 1)]
    assert [one.name for one in entities(chunks, 1)] == ["Varn"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=3))
def test_every_entity_of_any_text_is_in_its_chunks(texts):
    chunks = [(index, text, "") for index, text in enumerate(texts)]
    for one in entities(chunks, 50):
        assert one.chunks <= set(range(len(texts)))
        words = one.name.lower().split()
        assert all(all(word in texts[index].lower() for word in words) for index in one.chunks)


def test_groups_take_sizes_in_turn_and_first_those_that_stand_together():
    ada, bo, cy = Entity("Ada", ((0, 1), (1, 1))), Entity("Bo", ((1, 1),)), Entity("Cy", ((2, 9),))
    made = [tuple(one.name for one in group) for group in expand.groups([ada, bo, cy], (1, 2, 3), 99)]
    assert made[:3] == [("Ada",), ("Ada", "Bo"), ("Ada", "Bo", "Cy")]
    assert len(made) == 3 + 3 + 1
    assert len(set(made)) == 7
    assert expand.groups([ada], (2, 3), 9) == []


def test_a_plan_takes_documents_in_turn_and_a_shorter_one_is_its_beginning(kb):
    with open_store(kb) as store:
        subjects = list(expand.subjects(store))
        found = [(one, one.found(12)) for one in subjects]
        splits = {one.path: "train" for one in subjects}
        whole = expand.plan(found, (1, 2), 24, 1500, splits)
        fewer = expand.plan(found, (1, 2), 2, 1500, splits)
        assert [task.number for task in whole] == list(range(len(whole)))
        assert fewer == whole[:4]
        paths = [expand.source(store, task).document for task in whole[:4]]
    assert paths == ["/d/inn.md", "/d/varn.md"] * 2


def test_a_passage_is_written_from_the_chunks_that_name_its_entities(kb):
    with open_store(kb) as store:
        (subject,) = [one for one in expand.subjects(store) if one.title == "varn.md"]
        by_name = {one.name: one for one in subject.found(12)}
        assert [part.index for part in expand.source_parts(subject, [by_name["Bo Tarn"]], 1500)] == [1]
        assert sorted(part.index for part in expand.source_parts(subject, [by_name["Ada Lorne"]], 1500)) == [0, 1]
        assert len(expand.source_parts(subject, [by_name["Ada Lorne"]], 1)) == 1  # one at least


def written(text, names=("Ada Lorne",)):
    return expand.refused(expand.Written({"passage": text}, names, Passage("/d", "Varn", 0, "", MILL + LAMP, None, (0, 9))))


GOOD = (
    "It was Ada Lorne who built the mill of Varn, in 1820; whoever visits the mill pays 3 pence. Varn has its lamp from Ada "
    "Lorne as well: Bo Tarn is there to light the lamp, and nobody else may. A mill and a lamp, both by Ada Lorne. "
)


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        (GOOD, ""),
        ((MILL + LAMP).replace("\n", " ") + "Nobody else may light the lamp of Ada Lorne.", "copied"),
        ("Ada Lorne.", "length"),
        (GOOD.replace("Ada Lorne", "She"), "subject"),
        (GOOD + "As the text above says.", "reference"),
        (GOOD + "It cost 4000 pounds.", "grounded"),
        (GOOD + "She knew King Olaf, Queen Maud, Prince Karl, Duke Hans and Lord Penn of Lund.", "grounded"),
        ("Ada Lorne enjoyed wandering through forests, admiring butterflies, composing melancholy ballads " * 4, "grounded"),
    ],
)
def test_gates(text, gate):
    assert written(text)[0] == gate


def test_what_is_no_passage_is_refused_by_its_form():
    for values in (None, [], {"passage": 3}, {"text": "a"}):
        one = expand.Written(values, ["Ada"], Passage("/d", "V", 0, "", MILL, None, (0, 9)))
        assert expand.refused(one)[0] == "schema"


def test_rows_are_texts_with_their_source(kb, server, tmp_path):
    result, rows = run(kb, server, tmp_path)
    assert result["rows"] == len(rows) > 4
    assert result["tasks"]["open"] == result["tasks"]["failed"] == 0
    assert set(result["styles"]) == {"entity", "pair", "triple"}
    texts = {"/d/varn.md": DOCUMENTS["varn.md"], "/d/inn.md": DOCUMENTS["inn.md"]}
    for row in rows:
        source = row["source"]
        assert all(name in row["text"] for name in source["entities"])
        assert source["model"] == "writer"
        assert source["job"] == result["job"]
        start, end = source["span"]
        assert "".join(texts[source["document"]])[start:end] == texts[source["document"]][source["chunk"]]
    assert len(server.asked) == result["calls"]


def test_a_job_that_broke_off_goes_on_and_ends_with_the_same_rows(kb, server, tmp_path):
    _, whole = run(make_store(tmp_path / "other.sqlite", DOCUMENTS), server, tmp_path, out=tmp_path / "whole.jsonl")
    asked = len(server.asked)
    server.asked.clear()
    server.most = 3
    with pytest.raises(RunFailed):
        run(kb, server, tmp_path)
    server.most = 10**9
    result, rows = run(kb, server, tmp_path)
    assert [row["text"] for row in rows] == [row["text"] for row in whole]
    assert len(server.asked) == asked
    assert run(kb, server, tmp_path)[1] == rows
    assert len(server.asked) == asked  # nothing is asked twice
    assert result["tasks"]["done"] == asked


def test_a_file_that_was_reviewed_is_not_written_anew(kb, server, tmp_path):
    _, rows = run(kb, server, tmp_path)
    with open_review(tmp_path / "out.jsonl") as sitting:
        sitting.say(0, "reject")
    with pytest.raises(DataError, match="holds what you said in review"):
        run(kb, server, tmp_path)
    assert run(kb, server, tmp_path, force=True)[1] == rows
    with open_review(kb) as sitting:
        sitting.say(0, "reject")
    assert run(kb, server, tmp_path)[1] == rows[1:]


def test_what_another_job_wrote_stays_where_nothing_is_made(kb, server, tmp_path):
    run(kb, server, tmp_path)
    before = (tmp_path / "out.jsonl").read_bytes()
    server.most = 0
    with pytest.raises(RunFailed):
        run(kb, server, tmp_path, seed=1, force=True)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_larger_limit_goes_on(kb, server, tmp_path):
    _, few = run(kb, server, tmp_path, limit=2)
    _, more = run(kb, server, tmp_path, limit=5)
    assert len(few) == 2
    assert more[:2] == few
    assert len(server.asked) == 5


def test_entities_by_a_model_are_those_that_the_document_has(kb, server, tmp_path):
    result, rows = run(kb, server, tmp_path, entities="model", sizes=(1, 2))
    assert {name for row in rows for name in row["source"]["entities"]} == {"Ada Lorne", "Cora Vane", "The Grey Inn"}
    assert result["entities"] == 3
    calls = len(server.asked)
    assert run(kb, server, tmp_path, entities="model", sizes=(1, 2))[1] == rows
    assert len(server.asked) == calls  # neither job asks again


def test_duplicates_and_refused_rows_are_kept_with_their_reason(tmp_path):
    kb = make_store(tmp_path / "kb.sqlite", {"varn.md": [MILL, LAMP, "Dan Roe is not named.\n"]})
    with writer(lambda _: json.dumps({"passage": GOOD})) as server:
        result, rows = run(kb, server, tmp_path, rejects=tmp_path / "no.jsonl", sizes=(1,), near=0.8)
    assert [row["text"] for row in rows] == [GOOD.strip()]
    assert result["rejected"] == {"duplicate": 1, "grounded": 1, "subject": 1}  # what tells of Bo Tarn has no 1820
    refused = [json.loads(line) for line in (tmp_path / "no.jsonl").read_text().splitlines()]
    assert len(refused) == sum(result["rejected"].values())
    assert all(row["gate"] and row["reason"] for row in refused)


def test_a_dry_run_asks_nobody(kb):
    found = estimate_expand(kb, ExpandSettings(provider="openai", limit=3), ProviderSettings(price_in=1e6, price_out=1e6))
    assert (found["tasks"], found["rows"], len(found["prompts"])) == (3, 3, 3)
    assert found["cost"]["most"] == found["prompt_tokens"] + found["completion_tokens"]["most"]
    assert "Cora Vane" in found["prompts"][0]["messages"][-1]["content"]
    asked = estimate_expand(kb, ExpandSettings(provider="openai", limit=3, entities="model"), ProviderSettings())
    assert asked["tasks"] == 3 + 3  # a call a chunk more


def test_the_tiny_model_always_keeps_to_the_form(kb, tmp_path):
    rejects = tmp_path / "no.jsonl"
    with pytest.raises(DataError, match="no row passed"):  # it cannot write what a document says
        synth_expand(
            kb, tmp_path / "o.jsonl", ExpandSettings(limit=3, max_tokens=260), ProviderSettings(model="tiny"), rejects=rejects
        )
    rows = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert len(rows) == 3
    assert not [row for row in rows if row["gate"] in ("schema", "length")]
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "4"], "1, 2 and 3"),
        (["--sizes", "a"], "no list"),
        (["--provider", "opnai"], "did you mean 'openai'"),
        (["--model", "tiny", "--url", "http://x/v1"], "--url is for"),
        (["--max-cost", "1"], "needs --price-in"),
        (["--provider", "openai", "--url", "http://127.0.0.1:9/v1"], "start"),
        (["--prompts", "none"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_store(kb, tmp_path, words, said):
    before = [path.read_bytes() for path in sorted(kb.parent.glob("kb.sqlite"))]
    done = CliRunner().invoke(command, [str(kb), "-o", str(tmp_path / "o.jsonl"), *words])
    told = str(done.exception) if isinstance(done.exception, MlxforgeError) else done.output
    assert done.exit_code != 0
    assert said in told
    assert [path.read_bytes() for path in sorted(kb.parent.glob("kb.sqlite"))] == before
    assert not (tmp_path / "o.jsonl").exists()


def test_a_store_without_names_says_what_to_do(tmp_path):
    kb = make_store(tmp_path / "kb.sqlite", {"a.md": ["all small letters here, nothing else.\n"]})
    with pytest.raises(DataError, match="--entities model"):
        estimate_expand(kb, ExpandSettings(), ProviderSettings())
