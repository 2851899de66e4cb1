"""report.json, rows.jsonl, report.md and report.html: nothing is lost, nothing is run, nothing is fetched."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import msgspec
import pytest
from report_makes import HOSTILE, LABELS, line, paired, report, rows, value

from mlxforge.core.errors import DataError
from mlxforge.evals.explorer import LONGEST, SHOWN
from mlxforge.evals.figures import chance, findings, number, overall, sentence, signed, standing, visible
from mlxforge.evals.markdown import plain
from mlxforge.evals.report import MARKDOWN, PAGE, REPORT, ROWS, ModelInfo, Report, SetInfo, Value, load_report
from mlxforge.evals.road import Gain, Outcome, Summary
from mlxforge.evals.write import write_pages, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """A page as a browser takes it apart: tags, attributes, text outside of scripts."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.scripts, self.words, self.inside = [], [], [], [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif not self.inside:
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_report(report(), rows(), folder)
    return folder


def test_a_report_comes_back_as_it_was(written):
    assert load_report(written) == report()
    assert load_report(written / REPORT) == load_report(written / PAGE) == report()
    assert sorted(one.name for one in written.iterdir()) == sorted([REPORT, ROWS, MARKDOWN, PAGE])


def test_another_file_is_no_report(tmp_path):
    (tmp_path / REPORT).write_text('{"stages": []}')
    with pytest.raises(DataError, match="no models in it"):
        load_report(tmp_path)


def test_rows_come_back_as_they_were(written):
    found = [json.loads(text) for text in (written / ROWS).read_text("utf-8").split("\n") if text]
    assert found == [json.loads(json.dumps(one).replace("\\ud83d", "?")) for one in rows()]


def test_rows_that_stand_there_are_kept(written, tmp_path):
    write_report(report(), None, written)
    assert len((written / ROWS).read_text("utf-8").split("\n")) == 3 * 40 + 1
    write_report(report(), None, tmp_path)
    assert not (tmp_path / ROWS).exists()
    assert "data" not in dict(Page((tmp_path / PAGE).read_text("utf-8")).attributes).values()


def test_scores_that_are_no_numbers_become_null(tmp_path):
    write_report(report(), [line(0, "base", "x", float("nan")), line(0, "sft", "y", 1.0)], tmp_path)
    first = json.loads((tmp_path / ROWS).read_text().splitlines()[0])
    assert first["scores"] == {"exact_match": None}


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / ROWS).write_text('{"set": "a", "row": 0, "model": "m"}\n\n{"set": "a"}\n')
    with pytest.raises(DataError, match="row") as raised:
        write_report(report(), None, tmp_path)
    assert raised.value.where.endswith(f"{ROWS}:3")
    assert not (tmp_path / PAGE).exists()


def figures():
    """Every figure of the report as it is written."""
    for _, _, _, one in report().values():
        for bound in (one.value, one.low, one.high):
            if bound is not None:
                yield number(bound, one.unit) if bound == one.value else number(bound)
        if one.n:
            yield str(one.n)
        if one.why:
            yield one.why
    for test in report().tests:
        yield from (signed(test.difference), number(test.low), number(test.high), chance(test.p), str(test.n))


def test_every_figure_is_in_both_pages(written):
    markdown = html.unescape((written / MARKDOWN).read_text("utf-8"))
    page = Page((written / PAGE).read_text("utf-8")).text.replace("−", "-")
    for words in figures():
        assert words in markdown
        assert words in page
    for words in (*LABELS, "handbook", "retention", "exact match", "test.jsonl", *report().notes):
        assert words in markdown
        assert words in page


def test_the_page_needs_nothing_else(written):
    source = (written / PAGE).read_text("utf-8")
    page = Page(source)
    assert not {"link", "iframe", "img", "object", "embed", "base", "form", "source", "video"} & set(page.tags)
    for name, content in page.attributes:
        assert name not in ("src", "srcset", "action", "formaction", "background")
        assert not name.startswith("on")
        if name in ("href", "xlink:href"):
            assert content.startswith("#")
    outside = source.replace(page.scripts[0], "")
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(", outside)


def test_only_the_script_of_the_page_may_run(written):
    import base64
    import hashlib

    page = Page((written / PAGE).read_text("utf-8"))
    assert len(page.scripts) == 2
    trusted = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    (policy,) = [content for name, content in page.attributes if name == "content" and "default-src" in content]
    assert f"script-src 'sha256-{trusted}'" in policy


def test_hostile_text_is_data(written):
    source = (written / PAGE).read_text("utf-8")
    assert "<script>window" not in source
    assert "<img" not in source
    assert "\x00" not in source
    kept = {row["row"]: row for row in Page(source).data["rows"]}
    for row, bad in enumerate(HOSTILE):
        assert kept[row]["answers"]["sft"]["text"] == bad.replace("\ud83d", "?")


def test_hostile_names_are_text(tmp_path):
    bad = "</td><script>x</script>\x00\u202e\"'"
    made = Report(
        models=[ModelInfo(label=bad, name=bad, kind=bad, stage=bad, family=bad, hash=bad, run=bad)],
        sets=[SetInfo(name=bad, path=bad, kind="text", rows=1)],
        results={bad: {bad: {bad: value(0.5, why=bad)}}},
        notes=[bad],
        curves={bad: [{"step": 1, "loss": 1.0}]},
        created=bad,
        mlxforge=bad,
    )
    write_report(made, [line(0, bad, bad, 1.0, name=bad)], tmp_path)
    page = Page((tmp_path / PAGE).read_text("utf-8"))
    assert len(page.scripts) == 2
    assert visible(bad) in page.text
    markdown = (tmp_path / MARKDOWN).read_text("utf-8")
    assert "<script>" not in markdown
    assert "\x00" not in markdown


def test_markdown_takes_text_as_text(written):
    source = (written / MARKDOWN).read_text("utf-8")
    assert "<script" not in source
    assert "](" not in source
    assert "https://" not in source
    tables = [text for text in source.splitlines() if text.startswith("|")]
    # Models, figures of three models, tests, curves: a stray bar in a cell would make a width of its own.
    assert {text.count("|") for text in tables} == {8, 5, 9}
    assert len(tables) > 10


def test_no_mark_of_markdown_is_left():
    for bad in (*HOSTILE, "# h", "_x_ a_b", "1 < 2 & 3", "www | ~~x~~"):
        text = plain(bad)
        assert not re.search(r"[\\`*\[\]|~@$<>]|://|\n|(?<!\w)_|_(?!\w)", text), text
        assert html.unescape(text).replace(" ↵ ", "") == visible(bad).replace("\t", " ").replace("\n\n  ", "")
    assert plain("a_b") == "a_b"


def test_a_change_is_marked_where_test_and_interval_say_so():
    def said(better="higher", size=1.0, **more):
        figures = {"difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.01} | more
        return standing(paired("s", "m", "b", "a", **figures), Value(value=size, better=better))

    assert (said(), said("lower"), said("")) == ("better", "worse", "")
    assert said(p=0.05) == said(low=0.0) == said(low=-0.1, high=0.0) == "unclear"
    assert standing(None, Value(value=1.0)) == ""
    # An f16 file against its model: beyond chance, and too small to be seen in any figure.
    assert said("lower", 0.9, difference=1.1e-5, low=9e-6, high=1.4e-5, p=0.004) == "unclear"
    assert said("lower", 0.0, difference=-1.1e-5, low=-2e-5, high=-9e-6, p=0.004) == "better"


def test_the_verdict_is_on_top(written):
    found = findings(report())
    assert overall(found["sft"]) == "mixed"
    assert overall(found["cpt"]) == "no clear change"
    told = sentence(found["sft"], 2)
    assert told == "handbook exact match 0.025 → 0.600, p<0.001; retention bpb 1.200 → 1.230, p=0.004"
    assert told in (written / MARKDOWN).read_text("utf-8")[:600].replace("&lt;", "<")


def test_long_reports_stay_small_and_hold_the_worst(tmp_path):
    def many():
        for row in range(2 * SHOWN):
            worse = row % 100 == 7
            long = "word " * 3000 if row == 7 else "word " * 20
            yield line(row, "base", "right", 1.0 if worse else 0.0)
            yield line(row, "sft", long, 0.0)

    write_report(report(), many(), tmp_path)
    source = (tmp_path / PAGE).read_text("utf-8")
    page = Page(source)
    kept = page.data["rows"]
    assert len(kept) == SHOWN
    assert sorted(row["row"] for row in kept[:6]) == [7, 107, 207, 307, 407, 507]
    assert f"The {SHOWN} worst of {2 * SHOWN} rows" in page.text
    cut = next(row for row in kept if row["row"] == 7)["answers"]["sft"]["text"]
    assert cut.endswith(f"… [{3000 * 5 - LONGEST:,} characters more in rows.jsonl]")


def test_huge_rows_are_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("mlxforge.evals.explorer.ROOM", 20_000)
    write_report(report(), (line(row, "base", "a" * 3000, 0.0) for row in range(20)), tmp_path)
    page = Page((tmp_path / PAGE).read_text("utf-8"))
    assert 0 < len(page.data["rows"]) < 7
    assert f"The {len(page.data['rows'])} worst of 20 rows" in page.text


def test_an_empty_report_is_a_page_too(tmp_path):
    write_report(Report(), [], tmp_path)
    assert "Nothing was evaluated" in (tmp_path / PAGE).read_text("utf-8")
    assert msgspec.json.decode((tmp_path / REPORT).read_bytes())["models"] == []


ROAD = Summary(
    project="p",
    stages=[
        Outcome(stage="ingest", status="done", done=True, made="12 documents", seconds=1.2, disk=320_000),
        Outcome(
            stage="sft", status="done", done=True, seconds=3725, tokens=81_234, peak_memory=520_000_000, cost=0.125,
            gains=[Gain(name="exact match", before=0.02, after=0.61, share=True), Gain(name="bpb", before=1.9, after=1.1)],
        ),
    ],
    seconds=3726.2, tokens=81_234, peak_memory=520_000_000, disk=320_000, cost=0.125,
)  # fmt: skip


def test_the_stages_of_a_pipeline_stand_on_both_pages(tmp_path):
    write_report(report(), rows(), tmp_path)
    (tmp_path / "pipeline.json").write_bytes(msgspec.json.encode(ROAD))
    write_pages(tmp_path)
    page = Page((tmp_path / PAGE).read_text("utf-8")).text
    for text in (page, (tmp_path / MARKDOWN).read_text("utf-8")):
        for words in ("12 documents", "1:02:05", "81,234", "520 MB", "$0.12", "exact match 2.0% → 61.0%; bpb 1.900 → 1.100"):
            assert words in text.replace("&#36;", "$")


def test_a_new_report_forgets_what_was_said_of_the_old_one(tmp_path):
    for name in ("gate.json", "pipeline.json"):
        (tmp_path / name).write_text("{}")
    write_report(report(), rows(), tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([REPORT, ROWS, MARKDOWN, PAGE])


def test_a_damaged_verdict_is_told(tmp_path):
    write_report(report(), rows(), tmp_path)
    (tmp_path / "gate.json").write_text('{"passed": ')
    with pytest.raises(DataError, match="damaged") as raised:
        write_pages(tmp_path)
    assert raised.value.where == str(tmp_path / "gate.json")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_draws_the_rows_and_runs_nothing_else(written):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([BROWSER, *flags, (written / PAGE).as_uri()], capture_output=True, text=True, timeout=120, check=True)
    drawn = Page(done.stdout)
    assert [content for name, content in drawn.attributes if name == "class"].count("row") == 40
    assert len(drawn.scripts) == 2
    assert "img" not in drawn.tags


def test_numbers_as_people_read_them():
    assert [number(one) for one in (0.6104, 12.344, 812.34, 1234.5, 0.00012, 0.0, None, float("inf"))] == [
        "0.610", "12.34", "812.3", "1,234", "1.2e-04", "0.000", "–", "–",
    ]  # fmt: skip
    assert [number(one, "bytes") for one in (1.24e9, 820e6, 512, 1500)] == ["1.24 GB", "820 MB", "512 B", "1.50 kB"]
    assert number(0.0312, "s") == "0.031 s"
    assert (signed(0.59), signed(-0.01), signed(0.0)) == ("+0.590", "-0.010", "0.000")
    assert visible("a\x00b\u202ec\n\t\x7f") == "a⟨U+0000⟩b⟨U+202E⟩c\n\t⟨U+007F⟩"
