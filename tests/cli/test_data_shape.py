"""``mlxforge data extract|split|mix|dedup`` as a user runs them: what comes out, what is said, what bad input does."""

from __future__ import annotations

import json

import pytest
import yaml

from mlxforge.cli.main import run
from mlxforge.runs import shape_data


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, so that messages have short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys):
    """Runs ``mlxforge data ...``: (exit code, stdout, stderr)."""

    def made(*words):
        code = run(["data", *map(str, words)], debug=False)
        told = capsys.readouterr()
        return code, told.out, told.err

    return made


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat(number):
    return {"messages": [{"role": "user", "content": f"Ask {number}"}, {"role": "assistant", "content": f"Say {number}"}]}


TALK = "User: hi\nBot: yes\n"


def test_extract_writes_conversations_and_says_which_files_have_none(here, call):
    (here / "in").mkdir()
    (here / "in" / "a.md").write_text("# Talk\n" + TALK)
    (here / "in" / "b.txt").write_text("Just prose.")
    write(here / "in" / "c.jsonl", [{"text": "x"}])
    code, out, _ = call("extract", "in", "-o", "out/o.jsonl")
    assert code == 0
    assert rows_of(here / "out" / "o.jsonl") == [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}], "source": "in/a.md:2"}
    ]
    assert "in/b.txt: no conversation: no line begins with a speaker" in out
    assert "left out: lines before the first speaker: 1" in out
    assert "wrote out/o.jsonl: 1 conversation with 2 turns from 1 file" in out
    code, out, _ = call("extract", "in", "-o", "o.jsonl", "--json")
    result = json.loads(out)
    assert result["files"] == [
        {"path": "in/a.md", "conversations": 1, "reason": ""},
        {"path": "in/b.txt", "conversations": 0, "reason": "no line begins with a speaker"},
    ]


def test_extract_without_any_conversation_fails_and_writes_nothing(here, call):
    (here / "b.txt").write_text("Just prose.")
    code, out, err = call("extract", "b.txt", "-o", "o.jsonl", "--json")
    assert code == 2
    assert json.loads(out)["output"] is None
    assert err.startswith("error: b.txt: no conversation found")
    assert [path.name for path in here.iterdir()] == ["b.txt"]


def test_extract_takes_speakers_from_a_file_and_from_the_line(here, call):
    (here / "a.txt").write_text("Ann: hi\nBob: yes\n")
    (here / "s.yaml").write_text("user: [Ann:]\nassistant: [Bob:]\n")
    assert call("extract", "a.txt", "-o", "1.jsonl", "--speakers", "s.yaml")[0] == 0
    assert call("extract", "a.txt", "-o", "2.jsonl", "--set", "user=[Ann:]", "--set", "assistant=Bob:")[0] == 0
    assert (here / "1.jsonl").read_bytes() == (here / "2.jsonl").read_bytes()


def test_split_keeps_every_row_once_and_as_it_stands(here, call):
    lines = [f'{{"n" : {number}, "fact": "f{number % 50}"}}' for number in range(400)]
    (here / "a.jsonl").write_text("\n".join(lines))
    code, out, _ = call("split", "a.jsonl", "-o", "s", "--valid", "0.2", "--test", "0.1", "--by", "fact", "--json")
    assert code == 0
    result = json.loads(out)
    parts = {part: (here / "s" / f"{part}.jsonl").read_text().splitlines() for part in ("train", "valid", "test")}
    assert sorted(line for found in parts.values() for line in found) == sorted(lines)
    assert result["rows"] == {part: len(found) for part, found in parts.items()}
    facts = [{json.loads(line)["fact"] for line in found} for found in parts.values()]
    assert not facts[0] & facts[1]
    assert not facts[0] & facts[2]
    # The same rows in another order, with others between them, go where they went.
    (here / "b.jsonl").write_text("\n".join(lines[::-1] + [f'{{"n": {number}, "fact": "g{number}"}}' for number in range(99)]))
    call("split", "b.jsonl", "-o", "t", "--valid", "0.2", "--test", "0.1", "--by", "fact")
    for part, found in parts.items():
        assert set(found) == set(lines) & set((here / "t" / f"{part}.jsonl").read_text().splitlines())


def test_split_again_leaves_no_old_test_set(here, call):
    write(here / "a.jsonl", [chat(number) for number in range(50)])
    call("split", "a.jsonl", "-o", "s", "--test", "0.3")
    code, _, err = call("split", "a.jsonl", "-o", "s")
    assert (code, err) == (2, "error: s/train.jsonl: is there already (--force replaces it)\n")
    (here / "s" / "mine.txt").write_text("stays")
    assert call("split", "a.jsonl", "-o", "s", "--force")[0] == 0
    assert sorted(path.name for path in (here / "s").iterdir()) == ["mine.txt", "train.jsonl", "valid.jsonl"]


def test_dedup_keeps_the_first_and_reports(here, call):
    write(here / "a.jsonl", [chat(1), chat(2), chat(1)])
    write(here / "b.jsonl", [chat(2) | {"id": 5}, {"text": "the mill by the river"}, {"text": "The mill by the river."}])
    code, out, _ = call("dedup", "a.jsonl", "b.jsonl", "-o", "o.jsonl", "--near", "0.8", "--report", "r.jsonl")
    assert code == 0
    assert "dropped of 6 rows: 2 exact, 1 near" in out
    assert rows_of(here / "o.jsonl") == [chat(1), chat(2), {"text": "the mill by the river"}]
    assert [(row["row"], row["duplicate_of"], row["kind"]) for row in rows_of(here / "r.jsonl")] == [
        ("a.jsonl:3", "a.jsonl:1", "exact"), ("b.jsonl:1", "a.jsonl:2", "exact"), ("b.jsonl:3", "b.jsonl:2", "near"),
    ]  # fmt: skip


def test_dedup_warns_where_most_rows_look_alike(here, call):
    text = "What does a ticket for the museum of the old county cost on a weekday in winter? {} pence."
    write(here / "a.jsonl", [{"text": text.format(number)} for number in range(20)])
    _, out, err = call("dedup", "a.jsonl", "-o", "o.jsonl", "--near", "0.8")
    assert "dropped of 20 rows: 0 exact, 19 near" in out
    assert "warning  19 of 20 rows are near duplicates: rows made from one template look alike" in err


def test_dedup_refuses_messages_of_trees(here, call):
    write(here / "a.jsonl", [{"message_id": "a", "parent_id": None, "text": "Hi", "role": "prompter"}])
    code, _, err = call("dedup", "a.jsonl", "-o", "o.jsonl")
    assert code == 2
    assert err.startswith("error: a.jsonl:1: messages of a tree cannot be compared one by one")
    assert call("dedup", "a.jsonl", "-o", "o.jsonl", "--key", "text")[0] == 0


def oasst(number):
    base = {
        "lang": "en",
        "deleted": False,
        "tree_state": "ready_for_export",
        "model_name": None,
        "message_tree_id": f"t{number}",
    }
    ask = {"message_id": f"t{number}", "parent_id": None, "text": f"Ask {number}", "role": "prompter", "rank": None}
    answers = [
        {
            "message_id": f"t{number}.{rank}",
            "parent_id": f"t{number}",
            "text": f"{rank} {number}",
            "role": "assistant",
            "rank": rank,
        }
        for rank in (1, 0)
    ]
    return [base | row for row in (ask, *answers)]


@pytest.fixture
def blend(here):
    """Folders with rows of the shapes that the hub's data sets have, and what leads the shipped mix to them."""
    write(here / "oasst" / "train.jsonl", [row for number in range(70) for row in oasst(number)])
    orca = [{"id": f"niv.{n}", "system_prompt": "", "question": f"Which {n}?", "response": f"That {n}."} for n in range(60)]
    write(here / "orca" / "train.jsonl", orca)
    dolly = [{"instruction": f"Explain {n}", "context": "", "response": f"So {n}", "category": "open_qa"} for n in range(40)]
    write(here / "dolly" / "train.jsonl", dolly)
    alpaca = [{"instruction": f"Do {n}", "input": "", "output": f"Done {n}", "text": f"Below is {n}"} for n in range(50)]
    write(here / "alpaca" / "train.jsonl", alpaca)
    write(here / "own.jsonl", [chat(number) for number in range(30)])
    paths = {"oasst1": "oasst", "openorca": "orca", "dolly": "dolly", "alpaca": "alpaca", "own": "own.jsonl"}
    return [word for name, path in paths.items() for word in ("--set", f"{name}={path}")]


def test_the_general_mix_on_local_files_of_the_same_shape(here, call, blend):
    code, out, err = call("mix", "mix-general", *blend, "--set", "rows=200", "-o", "m.jsonl")
    assert code == 0, err
    rows = rows_of(here / "m.jsonl")
    names = [row["source"] for row in rows]
    assert {name: names.count(name) for name in set(names)} == {
        "oasst1": 63,
        "openorca": 54,
        "dolly": 36,
        "alpaca": 27,
        "own": 20,
    }
    assert len({json.dumps(row["messages"]) for row in rows}) == 200
    # Rows lead back to where they came from, and the best-ranked answer was taken.
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        path, _, line = row["origin"].rpartition(":")
        if row["source"] == "own":
            assert rows_of(here / path)[int(line) - 1]["messages"] == row["messages"]
        if row["source"] == "oasst1":
            assert row["messages"][1]["content"] == f"0 {row['messages'][0]['content'].split()[1]}"
    record = yaml.safe_load((here / "m.mix.yaml").read_text())
    assert [source["taken"] for source in record["sources"]] == [63, 54, 36, 27, 20]
    assert [source["available"] for source in record["sources"]] == [70, 60, 40, 50, 30]
    assert all(len(source["hash"]) == 64 for source in record["sources"])
    assert "openorca   27.0% (asked 27.0%)  54 of 60 rows" in out
    # The same again is the same; another seed is not.
    call("mix", "mix-general", *blend, "--set", "rows=200", "-o", "n.jsonl")
    assert (here / "m.jsonl").read_bytes() == (here / "n.jsonl").read_bytes()
    call("mix", "mix-general", *blend, "--set", "rows=200", "--set", "seed=1", "-o", "n.jsonl", "--force")
    assert (here / "m.jsonl").read_bytes() != (here / "n.jsonl").read_bytes()


def test_a_mix_says_what_kept_it_small_or_reads_it_again(here, call, blend):
    _, out, _ = call("mix", "mix-general", *blend, "--set", "rows=1000", "-o", "m.jsonl")
    assert "1,000 rows were asked for: 'openorca' has no more for its share" in out
    assert len(rows_of(here / "m.jsonl")) == 222
    _, out, _ = call("mix", "mix-general", *blend, "--set", "own.cap=5", "-o", "c.jsonl")
    assert "the cap of 'own' keeps the whole smaller" in out
    assert len(rows_of(here / "c.jsonl")) == 50
    _, out, _ = call("mix", "mix-general", *blend, "--set", "repeat=true", "--set", "rows=1000", "-o", "r.jsonl", "--json")
    result = json.loads(out)
    assert [source["taken"] for source in result["sources"]] == [315, 270, 180, 135, 100]
    assert result["sources"][4]["repeats"] == pytest.approx(100 / 30, abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "besides"),
    [
        ("b.share=0.4", ["a.share=0.6"]),
        ("b.path=a.jsonl", []),
        ("b.name=other", []),
        ("b.cap=3", []),
        ("b.limit=3", []),
        ("b.repeat=true", []),
        ("b.format=dolly", []),
        ("b.map={system: keep}", []),
        ("rows=4", []),
        ("characters=20", ["by=characters"]),
        ("by=characters", []),
        ("repeat=true", ["rows=30"]),
        ("seed=3", []),
    ],
)
def test_every_setting_of_a_mix_matters(setting, besides, here, call):
    def mixed(*settings):
        words = [word for one in settings for word in ("--set", one)]
        code, _, err = call("mix", "m.yaml", *words, "-o", "o.jsonl", "--force")
        return (here / "o.jsonl").read_bytes() if code == 0 else err

    write(here / "a.jsonl", [chat(number) for number in range(12)])
    write(here / "b.jsonl", [{"prompt": f"p {n}", "completion": "c" * n, "keep": "k"} for n in range(1, 9)])
    (here / "m.yaml").write_text("sources:\n- {path: a.jsonl, share: 0.5}\n- {path: b.jsonl, share: 0.5}\n")
    assert mixed(*besides, setting) != mixed(*(besides if setting != "b.share=0.4" else []))
    assert mixed(*besides[:1], setting) == mixed(*besides[:1], setting)


def test_a_mix_by_characters(here, call):
    write(here / "a.jsonl", [chat("x" * (1 + number % 7)) for number in range(200)])
    write(here / "b.jsonl", [chat("y" * 50) for number in range(40)])
    (here / "m.yaml").write_text("by: characters\nsources:\n- {path: a.jsonl, share: 0.7}\n- {path: b.jsonl, share: 0.3}\n")
    code, out, _ = call("mix", "m.yaml", "--set", "characters=3000", "-o", "m.jsonl", "--json")
    assert code == 0
    sizes = {"a": 0, "b": 0}
    for row in rows_of(here / "m.jsonl"):
        sizes[row["source"]] += sum(len(message["content"]) for message in row["messages"])
    assert [source["characters"] for source in json.loads(out)["sources"]] == list(sizes.values())
    assert sizes["a"] == pytest.approx(2100, abs=12)
    assert sizes["b"] == pytest.approx(900, abs=54)


def test_a_mistake_in_the_last_source_shows_before_the_first_is_read(here, call):
    (here / "broken.jsonl").write_text("{\n")
    (here / "m.yaml").write_text("sources:\n- {path: broken.jsonl, share: 0.5}\n- {path: none.jsonl, share: 0.5}\n")
    code, _, err = call("mix", "m.yaml", "-o", "o.jsonl")
    assert (code, err) == (2, "error: none.jsonl: no such file or folder\n")


WRITES = {
    "extract": ("extract", "a.txt", "-o", "out.jsonl"),
    "split": ("split", "a.jsonl", "-o", "sets"),
    "dedup": ("dedup", "a.jsonl", "-o", "out.jsonl"),
    "mix": ("mix", "m.yaml", "-o", "out.jsonl"),
}


@pytest.fixture
def inputs(here):
    (here / "a.txt").write_text(TALK)
    write(here / "a.jsonl", [chat(number) for number in range(1500)])
    (here / "m.yaml").write_text("sources:\n- {path: a.jsonl, share: 1}\n")
    return sorted(path.name for path in here.iterdir())


@pytest.mark.parametrize("verb", WRITES)
def test_nothing_is_overwritten_unasked(verb, here, call, inputs):
    assert call(*WRITES[verb])[0] == 0
    before = {path: path.read_bytes() for path in here.rglob("*.*")}
    code, _, err = call(*WRITES[verb])
    assert code == 2
    assert "is there already (--force replaces it)" in err
    assert {path: path.read_bytes() for path in here.rglob("*.*")} == before
    assert call(*WRITES[verb], "--force")[0] == 0
    assert {path: path.read_bytes() for path in here.rglob("*.*")} == before


@pytest.mark.parametrize("verb", WRITES)
def test_an_interrupt_leaves_nothing_behind(verb, here, call, inputs, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    # The last step before a file takes its name.
    monkeypatch.setattr("mlxforge.data.output.os.replace", stop)
    assert call(*WRITES[verb])[0] == 130
    assert sorted(path.name for path in here.iterdir()) == inputs


@pytest.mark.parametrize("verb", ["split", "dedup", "mix"])
def test_bad_rows_stop_or_are_skipped_and_counted(verb, here, call, inputs):
    with open(here / "a.jsonl", "a") as file:
        file.write('{"messages": \n[1]\n')
    code, out, err = call(*WRITES[verb])
    assert (code, out) == (2, "")
    assert err.startswith("error: a.jsonl:1501: broken JSON")
    assert "error: a.jsonl:1502: a row is an object" in err
    assert sorted(path.name for path in here.iterdir()) == inputs
    code, out, err = call(*WRITES[verb], "--skip-bad", "--json")
    assert code == 0
    result = json.loads(out)
    assert (result["sources"][0] if verb == "mix" else result)["skipped"] == 2
    assert "bad rows skipped: 2" in err
    assert "a.jsonl:1501" in err


BAD = {
    "no such file": (("dedup", "none.jsonl", "-o", "x.jsonl"), "none.jsonl: no such file"),
    "no rows": (("dedup", "empty.jsonl", "-o", "x.jsonl"), "empty.jsonl: no rows"),
    "two outputs in one file": (("dedup", "one.jsonl", "-o", "x.jsonl", "--report", "./x.jsonl"), "two outputs in one file"),
    "rows as text": (("mix", "m.yaml", "-o", "x.txt"), "JSON lines are not read from '.txt' files"),
    "no rows to split": (("split", "empty.jsonl", "-o", "x"), "empty.jsonl: no rows"),
    "no rows to mix": (("mix", "m.yaml", "--set", "a=empty.jsonl", "-o", "x.jsonl"), "source 'a': empty.jsonl: no rows"),
    "unknown key": (("split", "one.jsonl", "-o", "x", "--by", "message"), "did you mean 'messages'?"),
    "unknown dedup key": (("dedup", "one.jsonl", "-o", "x", "--key", "message"), "did you mean 'messages'?"),
    "too large shares": (("split", "one.jsonl", "-o", "x", "--valid", "0.5", "--test", "0.5"), "nothing to train on"),
    "rows for text": (("extract", "one.jsonl", "-o", "x.jsonl"), "one.jsonl: holds rows, not text"),
    "hub for text": (("extract", "hub:x/y", "-o", "x.jsonl"), "hub:x/y: a hub dataset holds rows"),
    "not utf-8": (("extract", "latin.txt", "-o", "x.jsonl"), "latin.txt: not UTF-8 at byte 7"),
    "output is a folder": (("dedup", "one.jsonl", "-o", "folder"), "folder: not a regular file"),
    "a file where its folder would be": (
        ("dedup", "one.jsonl", "-o", "one.jsonl/a/x.jsonl"),
        "'one.jsonl' is a file, not a folder",
    ),
    "no such mix": (("mix", "none", "-o", "x.jsonl"), "none: cannot read the config"),
    "a training preset": (("mix", "cpt-standard", "-o", "x.jsonl"), "a mix has a list of sources"),
    "text in a mix": (("mix", "m.yaml", "--set", "a=text.jsonl", "-o", "x.jsonl"), "text rows (text) cannot be read as chat"),
    "unknown format": (("mix", "m.yaml", "--set", "a.format=alpacca", "-o", "x.jsonl"), "did you mean 'alpaca'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, here, call, inputs):
    (here / "empty.jsonl").write_text("\n")
    (here / "latin.txt").write_bytes(b"User: h\xefi")
    (here / "folder").mkdir()
    write(here / "one.jsonl", [chat(1)])
    write(here / "text.jsonl", [{"text": "x"}])
    before = sorted(path.name for path in here.iterdir())
    words, message = BAD[case]
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err
    assert sorted(path.name for path in here.iterdir()) == before


def test_progress_is_told():
    heard = []
    for rows in range(1, 2501):
        shape_data.progress(heard.append, "reading", rows)
    assert [event.done for event in heard] == [1000, 2000]


@pytest.mark.parametrize(
    ("row", "verb"),
    [
        ({"text": "x"}, "mlxforge cpt --data"),
        ({"prompt": "p", "completion": "c"}, "mlxforge sft --data"),
        ({"prompt": "p", "response": "c", "reward": 1}, "mlxforge"),
        ({"foo": "bar"}, "mlxforge data check"),
    ],
)
def test_what_comes_after_a_split_is_a_command_that_takes_the_rows(row, verb, here, call):
    write(here / "a.jsonl", [{**row, "id": number} for number in range(9)])
    code, out, _ = call("split", "a.jsonl", "-o", "s")
    assert code == 0
    assert f"next: {verb}" in out
    assert ("sft" in out) == ("sft" in verb)


def test_split_keeps_trees_whole(here, call):
    tree = [
        {"message_id": f"{role}{n}", "parent_id": parent and f"{parent}{n}", "role": role, "text": "t", "message_tree_id": n}
        for n in range(30)
        for role, parent in (("prompter", None), ("assistant", "prompter"))
    ]
    write(here / "a.jsonl", tree)
    code, _, err = call("split", "a.jsonl", "-o", "s")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--by message_tree_id" in err
    assert call("split", "a.jsonl", "-o", "s", "--valid", "0.3", "--by", "message_tree_id")[0] == 0
    parts = [{row["message_tree_id"] for row in rows_of(here / "s" / name)} for name in ("train.jsonl", "valid.jsonl")]
    assert not parts[0] & parts[1]


def test_cells_and_columns_are_written_as_they_are_read(here, call):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    turns = chat(1)["messages"]
    cell = json.dumps(turns[:1]).replace('"', '""')
    (here / "a.csv").write_text(f'prompt,completion,label\n"{cell}",c,\n')
    tool = {"name": "f", "arguments": {"a": 1, "b": None}}
    parquet.write_table(pyarrow.Table.from_pylist([{"tools": [tool], "source": None}]), here / "b.parquet")
    assert call("dedup", "a.csv", "b.parquet", "-o", "o.jsonl")[0] == 0
    assert rows_of(here / "o.jsonl") == [
        {"prompt": turns[:1], "completion": "c", "label": None},
        {"tools": [{"name": "f", "arguments": {"a": 1}}], "source": None},
    ]


def test_speakers_of_ones_own_need_not_name_the_time_stamps(here, call):
    (here / "chat.txt").write_text("[12/31/2023, 10:15:22 PM] Ann: hi\n31/12/2023, 22:16 - Bob: yes\n")
    (here / "own.yaml").write_text("user: ['Ann:']\nassistant: ['Bob:']\n")
    assert call("extract", "chat.txt", "--speakers", "own.yaml", "-o", "o.jsonl")[0] == 0
    assert [turn["content"] for turn in rows_of(here / "o.jsonl")[0]["messages"]] == ["hi", "yes"]
    assert call("extract", "chat.txt", "--speakers", "own.yaml", "--set", "prefix=[]", "-o", "p.jsonl")[0] == 2
