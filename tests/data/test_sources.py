"""Sources: every kind of file gives the same documents, and every mistake is one clear line."""

from __future__ import annotations

import csv
import json
import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxforge.core.errors import DataError, MissingExtraError
from mlxforge.core.events import Event
from mlxforge.data import readers
from mlxforge.data.readers import FileText, Reading
from mlxforge.data.sources import Source, content_key, documents, locate, parse_spec

TEXTS = ["one", "two\nlines, and a comma", 'a "quote"', "ünïcödé 漢字 🦊"]


def texts(*specs: str, mapping: dict[str, str] | None = None) -> list[str]:
    return [document.text for document in documents(locate([parse_spec(spec) for spec in specs]), mapping)]


def problem(*specs: str, mapping: dict[str, str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        texts(*specs, mapping=mapping)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("notes.txt", Source("notes.txt")),
        ("notes.txt@2", Source("notes.txt", 2.0)),
        ("notes.txt@0.5", Source("notes.txt", 0.5)),
        ("a@b/c", Source("a@b/c")),
        ("a@1.2.3", Source("a@1.2.3")),
        ("hub:org/name:train@0.5", Source("hub:org/name:train", 0.5)),
    ],
)
def test_a_specification_is_a_path_and_a_weight(spec: str, source: Source) -> None:
    assert parse_spec(spec) == source


def test_a_file_whose_name_ends_like_a_weight_is_a_file(here: Path) -> None:
    Path("day@2").mkdir()
    assert parse_spec("day@2") == Source("day@2")
    assert parse_spec("day@2@3") == Source("day@2", 3.0)


@pytest.mark.parametrize("weight", ["0", "-1", "1e999"])
def test_a_weight_is_above_zero(weight: str) -> None:
    with pytest.raises(DataError, match="a weight is a number above 0"):
        parse_spec(f"notes.txt@{weight}")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("hub:org/name", ("org/name", "train", None)),
        ("hub:org/name:test", ("org/name", "test", None)),
        ("hub:org/name:test:en", ("org/name", "test", "en")),
    ],
)
def test_a_hub_specification_is_id_split_config(spec: str, parts: tuple[str, str, str | None]) -> None:
    assert parse_spec(spec).hub == parts


def write(name: str, key: str = "text") -> Path:
    """TEXTS in the form that the suffix of ``name`` asks for."""
    path, rows = Path(name), [{key: text, "id": str(i)} for i, text in enumerate(TEXTS)]
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [key, "id"])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL", "a.json", "a.csv", "a.parquet"])
@pytest.mark.parametrize("key", ["text", "content"])
def test_every_kind_of_file_gives_the_same_documents(here: Path, name: str, key: str) -> None:
    write(name, key)
    assert texts(name, mapping={"text": key}) == TEXTS


def test_json_lines_under_the_suffix_json(here: Path) -> None:
    write("a.jsonl").rename("a.json")
    assert texts("a.json") == TEXTS


def test_one_object_over_many_lines_is_a_row(here: Path) -> None:
    Path("a.json").write_text(json.dumps({"text": "one"}, indent=2))
    assert texts("a.json") == ["one"]


def test_a_text_file_is_one_document_kept_as_it_is(here: Path) -> None:
    Path("a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \x00\xef\xbb\xbf\r\n")
    assert texts("a.txt") == ["one\r\n\r\n two \x00\ufeff\r\n"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_is_left_out(here: Path, name: str) -> None:
    path = write(name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert texts(name) == TEXTS


def test_origins_name_file_and_line(here: Path) -> None:
    write("a.jsonl")
    Path("b.csv").write_text('text\n"two\nlines"\n\nnext\n')
    Path("c.md").write_text("x")
    found = list(documents(locate([Source("a.jsonl"), Source("b.csv"), Source("c.md")])))
    assert [d.origin for d in found] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "a.jsonl:4", "b.csv:2", "b.csv:5", "c.md"]
    assert [d.source for d in found] == [0, 0, 0, 0, 1, 1, 2]


def test_folders_are_read_in_order_and_what_is_left_out_is_counted(here: Path) -> None:
    for name in ["d/b.txt", "d/a/z.md", "d/a.txt", "d/a/.secret.txt", "d/.git/x.txt", "d/x.pdf", "d/y.pdf", "d/Makefile"]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path("d/loop").symlink_to("..", target_is_directory=True)
    Path("d/a/self").symlink_to(".", target_is_directory=True)
    Path("d/gone.txt").symlink_to("nowhere")
    heard: list[Event] = []
    (found,) = locate([Source("d")], heard.append)
    assert [path.as_posix() for path in found.files] == ["d/a.txt", "d/a/z.md", "d/b.txt"]
    (note,) = [event.message for event in heard]  # type: ignore[attr-defined]
    assert note == "not read in the data folders: 2 .pdf, 2 hidden, 1 not a regular file, 1 without suffix"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc\xffdef", "a.txt: not UTF-8 at byte 3 (save it as UTF-8: iconv -f ENCODING -t UTF-8 FILE)"),
        ("a.txt", b"\xef\xbb\xbfab\xc3", "a.txt: not UTF-8 at byte 5 (save it as UTF-8: iconv -f ENCODING -t UTF-8 FILE)"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "\xe9"}\n',
            "a.jsonl:2: not UTF-8 at byte 24 (save it as UTF-8: iconv -f ENCODING -t UTF-8 FILE)",
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"text": "b"\n',
            "a.jsonl:3: broken JSON: Input data was truncated (a row is one object on one line)",
        ),
        ("a.jsonl", b'{"text": NaN}\n', "a.jsonl:1: broken JSON: invalid character (byte 9) (a row is one object on one line)"),
        ("a.jsonl", b'["a"]\n', 'a.jsonl:1: a row is an object with keys, not a list (such as {"text": "..."})'),
        (
            "a.jsonl",
            b'{"id": "7", "body": "long text"}\n',
            "a.jsonl:1: no 'text' key (keys: id, body) (--set 'map={text: body}')",
        ),
        ("a.jsonl", b"{}\n", "a.jsonl:1: no 'text' key (keys: none)"),
        ("a.jsonl", b'{"text": null}\n', "a.jsonl:1: 'text' is null, not text"),
        ("a.jsonl", b'{"text": ["a"]}\n', "a.jsonl:1: 'text' is a list, not text"),
        ("a.json", b'[{"text": "a"}, 5]', 'a.json:row 2: a row is an object with keys, not a number (such as {"text": "..."})'),
        ("a.json", b'[{"text": "a"}', "a.json: broken JSON: Input data was truncated"),
        ("a.csv", b"text,id\na,1\nb\n", "a.csv:3: 1 cells under 2 names"),
        ("a.csv", b"text,text\na,b\n", "a.csv:1: two columns are named 'text' (give each column a name of its own)"),
        ("a.csv", b'text,id\n"a,1\n', "a.csv:2: broken CSV: unexpected end of data"),
        (
            "a.csv",
            b"text\na\n\xff\nb\n",
            "a.csv:3: not UTF-8 at byte 7 (save it as UTF-8: iconv -f ENCODING -t UTF-8 FILE)",
        ),
        ("a.csv", b"body,id\na b,1\n", "a.csv:2: no 'text' key (keys: body, id) (--set 'map={text: body}')"),
        (
            "a.pdf",
            b"x",
            "a.pdf: cannot read '.pdf' files (readable: .csv .db .json .jsonl .md .ndjson .parquet .sqlite .sqlite3 .txt)",
        ),
        ("a.db", b"x" * 200, "a.db: not a whole knowledge base: file is not a database (restore it, or ingest anew)"),
    ],
)
def test_bad_content_is_one_line(here: Path, name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    assert problem(name) == message


def test_a_broken_parquet_file(here: Path) -> None:
    Path("a.parquet").write_bytes(b"PAR1 and no more")
    assert problem("a.parquet").startswith("a.parquet: not a readable Parquet file: ")


def test_what_does_not_exist_is_told_of_all_sources_at_once(here: Path) -> None:
    Path("empty").mkdir()
    assert problem("none.txt@2", "empty").splitlines() == [
        "none.txt: no such file or folder",
        "empty: no readable files in the folder (readable: .csv .json .jsonl .md .ndjson .parquet .txt)",
        "2 problems in all",
    ]
    assert problem() == "no data is given (name files or folders: --data PATH)"


def test_a_map_to_what_a_text_row_does_not_have(here: Path) -> None:
    Path("a.jsonl").write_text('{"text": "a"}')
    assert problem("a.jsonl", mapping={"txt": "a"}) == "map: a text row has no 'txt' (did you mean 'text'?)"


def test_what_is_fatal_is_told_before_rows_that_are_skipped() -> None:
    reading = Reading(skip_bad=True)
    for number in range(30):
        reading.problem("bad", f"a.jsonl:{number}")
    for name in ("b.txt", "c.txt"):
        reading.problem("cannot read", name, fatal=True)
    with pytest.raises(DataError) as caught:
        reading.check()
    assert str(caught.value).splitlines()[:3] == ["b.txt: cannot read", "c.txt: cannot read", "a.jsonl:0: bad"]
    assert str(caught.value).splitlines()[20:] == ["32 problems in all, the first 20 are shown"]


def test_the_first_twenty_bad_rows_are_shown_and_all_counted(here: Path) -> None:
    Path("a.jsonl").write_text('{"text": "good"}\n' + "{\n" * 30)
    Path("b.txt").write_bytes(b"\xff")
    lines = problem("a.jsonl", "b.txt").splitlines()
    words = "broken JSON: Input data was truncated (a row is one object on one line)"
    assert lines[:20] == [f"a.jsonl:{n}: {words}" for n in range(2, 22)]
    assert lines[20:] == ["31 problems in all, the first 20 are shown"]


def test_after_a_bad_row_no_document_comes(here: Path) -> None:
    Path("a.jsonl").write_text('{"text": "good"}\n{\n{"text": "late"}\n')
    found = documents(locate([Source("a.jsonl")]))
    assert next(found).text == "good"
    with pytest.raises(DataError):
        next(found)


def test_a_row_too_long_for_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_LINE", 1 << 10)
    Path("a.jsonl").write_text(json.dumps({"text": "x" * 2000}))
    assert problem("a.jsonl") == "a.jsonl:1: a line of more than 0 MB (split the row)"


def test_a_missing_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mlxforge\[parquet\]'"):
        texts("a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mlxforge\[hub\]'"):
        texts("hub:org/name")


def test_a_hub_dataset_from_a_local_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(here / "home"))
    Path("set").mkdir()
    write("set/train.jsonl")
    Path("set/test.jsonl").write_text('{"text": "held out"}\n')
    assert texts("hub:./set") == TEXTS
    assert texts("hub:./set:test@2") == ["held out"]
    assert problem("hub:./set:nosplit").startswith("hub:./set:nosplit: cannot open the dataset: ")
    assert not logging.getLogger("huggingface_hub").isEnabledFor(logging.WARNING), "each retry would be a line"
    files = "".join(f"- {{config_name: {name}, data_files: {name}.jsonl}}\n" for name in ("train", "test"))
    Path("set/README.md").write_text(f"---\nconfigs:\n{files}---\n")
    assert texts("hub:./set:train:test") == ["held out"]
    told = problem("hub:./set")
    assert len(told.splitlines()) == 1
    assert "['train', 'test']" in told


def test_the_key_follows_content_not_names(here: Path) -> None:
    def key(name: str, weight: float = 1.0) -> str:
        return content_key(locate([Source(name, weight)]))

    Path("a.txt").write_text("x")
    Path("b.txt").write_text("x")
    Path("c.txt").write_text("y")
    Path("a.md").write_text("x")
    assert key("a.txt") == key("b.txt") == key("b.txt", 2.0)
    assert len({key("a.txt"), key("c.txt"), key("a.md")}) == 3


@given(data=st.binary(max_size=40) | st.text(max_size=20).map(str.encode), block=st.integers(1, 9))
def test_blocks_change_neither_text_nor_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int) -> None:
    path = tmp_path_factory.getbasetemp() / "block.txt"
    path.write_bytes(data)
    reading = Reading()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK", max(block, 3))
        text = "".join(FileText(path, reading))
    try:
        expected, broken = data.decode().removeprefix("\ufeff"), None
    except UnicodeDecodeError as error:
        broken = error.start
    if broken is None:
        assert (text, reading.bytes, reading.bad) == (expected, len(data), 0)
    else:
        assert f"not UTF-8 at byte {broken} " in reading.lines[0]
