"""Readers: real files of every kind give their text, headings and pages; what cannot be read says why."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxforge.core.errors import MissingExtraError
from mlxforge.knowledge.readers import READERS, Unreadable, parse
from mlxforge.knowledge.readers.plain import markdown_headings, rst_headings, split_at
from mlxforge.knowledge.readers.table import check_extras


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def titles(path: Path) -> list[tuple[int, str]]:
    return [(block.level, block.title) for block in parse(path).blocks if block.level]


def refused(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        parse(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pdf(path: Path, pages: list[list[str]], **options) -> Path:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), **options)
    canvas.setTitle("The mill")
    for number, lines in enumerate(pages):
        for i, line in enumerate(lines):
            if line.startswith("# "):
                canvas.bookmarkPage(f"{number}.{i}")
                canvas.addOutlineEntry(line[2:], f"{number}.{i}", 0)
            canvas.drawString(72, 720 - 20 * i, line.removeprefix("# "))
        canvas.rect(10, 10, 20, 20)
        canvas.showPage()
    canvas.save()
    return path


def test_pdf(tmp_path):
    parsed = parse(pdf(tmp_path / "a.pdf", [["# Wheel", "It turns."], [], ["# Stones", "They grind."]]))
    assert [(block.page, block.text) for block in parsed.blocks] == [
        (1, "Wheel\nIt turns.\n"),
        (2, ""),
        (3, "Stones\nThey grind.\n"),
    ]
    assert parsed.title == "The mill"
    assert parsed.contents == [(1, "Wheel", 1), (1, "Stones", 3)]
    assert parsed.notes == {"pages without text": 1}


def test_pdf_that_cannot_be_read(tmp_path):
    from reportlab.lib.pdfencrypt import StandardEncryption

    assert "encrypted" in refused(pdf(tmp_path / "a.pdf", [["Secret."]], encrypt=StandardEncryption("word", strength=128)))
    assert "OCR" in refused(pdf(tmp_path / "b.pdf", [[], []]))
    assert "broken" in refused(written(tmp_path, "c.pdf", b"%PDF-1.4\n1 0 obj <<"))
    assert "broken" in refused(written(tmp_path, "d.pdf", b""))
    open_to_all = StandardEncryption("", ownerPassword="owner", strength=128)
    assert parse(pdf(tmp_path / "e.pdf", [["Open."]], encrypt=open_to_all)).text == "Open.\n"


def test_docx(tmp_path):
    import docx
    from docx.oxml import parse_xml

    document = docx.Document()
    document.core_properties.title = "Handbook"
    document.add_heading("The mill", 1)
    document.add_paragraph("It stands ").add_run("by the river.")
    document.add_paragraph("Wheel", style="List Bullet")
    document.add_heading("Wheel", 2)
    table = document.add_table(2, 2)
    for i, text in enumerate(["part", "age", "axle", "9"]):
        table.cell(i // 2, i % 2).text = text
    names = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    tracked = f"<w:p {names}><w:ins><w:r><w:t>New</w:t></w:r></w:ins><w:del><w:r><w:delText>Old</w:delText></w:r></w:del></w:p>"
    document.element.body.insert(-1, parse_xml(tracked))
    document.save(tmp_path / "a.docx")
    parsed = parse(tmp_path / "a.docx")
    wanted = "# The mill\n\nIt stands by the river.\n\n- Wheel\n## Wheel\n\npart | age\naxle | 9\n\nNew\n\n"
    assert (parsed.title, parsed.text) == ("Handbook", wanted)
    assert titles(tmp_path / "a.docx") == [(1, "The mill"), (2, "Wheel")]


def test_pptx(tmp_path):
    import pptx
    from pptx.util import Inches

    show = pptx.Presentation()
    first = show.slides.add_slide(show.slide_layouts[1])
    first.shapes.title.text, first.placeholders[1].text = "Mills", "Old\nand new"
    first.notes_slide.notes_text_frame.text = "Speak slowly."
    second = show.slides.add_slide(show.slide_layouts[6])
    cells = second.shapes.add_table(1, 2, 0, 0, Inches(2), Inches(1)).table
    cells.cell(0, 0).text, cells.cell(0, 1).text = "a", "b"
    show.save(tmp_path / "a.pptx")
    parsed = parse(tmp_path / "a.pptx")
    assert parsed.text == "# Mills\n\nOld\nand new\n\nNotes: Speak slowly.\n\n# Slide 2\n\na | b\n\n"
    assert [block.page for block in parsed.blocks] == [1, 1, 1, 2, 2]


def test_xlsx(tmp_path):
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Sacks"
    for line in (["day", "sacks", "price"], [datetime.date(1984, 5, 1), 12, 2.5], [], [None, True, "a\nb"]):
        book.active.append(line)
    book.create_sheet("Empty")
    book.save(tmp_path / "a.xlsx")
    assert parse(tmp_path / "a.xlsx").text == "# Sacks\n\nday | sacks | price\n1984-05-01 | 12 | 2.5\n | True | a b\n\n"


PAGE = """<!DOCTYPE html><html><head><title>The  mill</title><style>p {}</style><script>var x</script></head><body>
<nav><ul><li>Home</li><li>About</li></ul></nav><div class="sidebar"><p>Links</p></div>
<h1>Mill <small>old</small></h1><p>It stands<br>by the <b>river</b>, café &amp; all.
<p>Steps:<ul><li>open<li>grind</ul><pre>  a
    b</pre><table><tr><th>part<th>age<tr><td>axle<td>9</table>
<footer>Imprint</footer></body></html>"""


def test_html(tmp_path):
    parsed = parse(written(tmp_path, "a.html", PAGE))
    body = "".join(block.text for block in parsed.blocks if block.role == "body")
    around = "".join(block.text for block in parsed.blocks if block.role == "navigation")
    assert parsed.title == "The mill"
    assert body == (
        "# Mill old\n\nIt stands\nby the river, café & all.\n\nSteps:\n\n- open\n- grind\n\n```\n  a\n    b\n```\n\n"
        "part | age\naxle | 9\n\n"
    )
    assert around == "- Home\n- About\n\nLinks\n\nImprint\n\n"
    latin = '<html><head><meta charset="iso-8859-1"></head><body><p>café</p>'.encode("latin-1")
    assert parse(written(tmp_path, "b.html", latin)).text == "café\n\n"


def test_of_a_page_with_a_main_part_all_else_is_navigation(tmp_path):
    page = "<body><p>Around</p><div><main><h1>Mill</h1><p>Text</p></main></div><p>After</p></body>"
    parsed = parse(written(tmp_path, "a.html", page))
    assert [block.text for block in parsed.blocks if block.role == "body"] == ["# Mill\n\n", "Text\n\n"]


def epub(path: Path, *, locked: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as book:
        book.writestr(
            "META-INF/container.xml", '<container><rootfiles><rootfile full-path="in/book.opf"/></rootfiles></container>'
        )
        items = "".join(f'<item id="{n}" href="{n}%201.xhtml" media-type="application/xhtml+xml"/>' for n in "ab")
        book.writestr(
            "in/book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Mills'
            f"</dc:title></metadata><manifest>{items}</manifest>"
            "<spine><itemref idref='b'/><itemref idref='a'/></spine></package>",
        )
        for n in "ab":
            book.writestr(f"in/{n} 1.xhtml", f"<html><body><h1>Chapter {n}</h1><p>Text {n}</p></body></html>")
        if locked:
            book.writestr("META-INF/encryption.xml", '<encryption><CipherReference URI="in/b%201.xhtml"/></encryption>')
    return path


def test_epub(tmp_path):
    parsed = parse(epub(tmp_path / "a.epub"))
    assert (parsed.title, parsed.text) == ("Mills", "# Chapter b\n\nText b\n\n# Chapter a\n\nText a\n\n")
    assert "protected" in refused(epub(tmp_path / "b.epub", locked=True))


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx", ".epub"])
def test_packed_files_that_are_broken_or_locked(tmp_path, suffix):
    assert "broken" in refused(written(tmp_path, f"a{suffix}", b"PK\x03\x04 no zip"))
    with zipfile.ZipFile(tmp_path / f"b{suffix}", "w") as other:
        other.writestr("a.txt", "a")
    assert refused(tmp_path / f"b{suffix}")
    if suffix != ".xlsx":
        assert "encrypted" in refused(written(tmp_path, f"c{suffix}", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)))


MARKDOWN = "---\ntitle: 'Old mills'\n---\nintro\n# Mill #\ntext\n```\n# no heading\n```\n\n"
MARKDOWN += "Wheel\n=====\n\nParts\n---\n\na | b\n--- | ---\n## End"


def test_markdown(tmp_path):
    path = written(tmp_path, "a.md", MARKDOWN)
    assert parse(path).text == MARKDOWN
    assert parse(path).title == "Old mills"
    assert titles(path) == [(1, "Mill"), (1, "Wheel"), (2, "Parts"), (2, "End")]


def test_rst(tmp_path):
    text = "=====\nMills\n=====\n\nWheel\n-----\n\ntext\n\nAxle\n~~~~\n\nStones\n------\n\na\n\n----\n\nb\n"
    path = written(tmp_path, "a.rst", text)
    assert parse(path).text == text
    assert titles(path) == [(1, "Mills"), (2, "Wheel"), (3, "Axle"), (2, "Stones")]


def test_code(tmp_path):
    text = "import os\n\nclass Mill:\n    def turn(self):\n        pass\n\nasync def main():\n    pass\n"
    path = written(tmp_path, "a.py", text)
    assert (parse(path).text, titles(path)) == (text, [(1, "Mill"), (1, "main")])
    assert titles(written(tmp_path, "a.rs", "pub(crate) fn turn<T>() {}\nimpl Mill {}\n")) == [(1, "turn"), (1, "Mill")]
    assert {READERS[suffix].type for suffix in (".py", ".rs", ".swift", ".metal")} == {"python", "rust", "swift", "metal"}


@given(st.text(alphabet="#=-`~ ab\n\r", max_size=80))
def test_splitting_at_headings_loses_nothing(text):
    for headings in (markdown_headings, rst_headings):
        assert "".join(block.text for block in split_at(text, headings(text))) == text


def test_rows(tmp_path):
    rows = [{"title": "Mill", "age": 9, "none": None, "text": "It\nturns."}, "plain", {"a": [1]}]
    wanted = "# Mill\n\nage: 9\n\nIt\nturns.\n\nplain\n\na: [1]\n\n"
    assert parse(written(tmp_path, "a.json", json.dumps(rows))).text == wanted
    assert parse(written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")).text == wanted
    assert parse(written(tmp_path, "a.csv", 'part,age\n"ax,le","9\n8"\n,,\n')).text == "part | age\nax,le | 9 8\n"
    assert parse(written(tmp_path, "a.tsv", "a\tb\n")).text == "a | b\n"
    assert "line 2" in refused(written(tmp_path, "b.jsonl", '{"a": 1}\n{"a"\n'))
    assert "broken CSV" in refused(written(tmp_path, "b.csv", 'a,"b\n'))


def test_text_in_its_encodings(tmp_path):
    assert parse(written(tmp_path, "a.txt", "\ufeffcafé".encode())).text == "café"
    assert parse(written(tmp_path, "b.txt", "café".encode("utf-16"))).text == "café"
    assert "not UTF-8 at byte 3" in refused(written(tmp_path, "c.txt", "café".encode("latin-1")))
    assert "zero bytes" in refused(written(tmp_path, "d.txt", b"a\0b"))
    assert refused(written(tmp_path, "e.txt", b" \n")) == "no text"
    assert parse(written(tmp_path, "f.json", '["a\\u0000b"]')).text == "ab\n\n"


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingExtraError, match=r"pypdfium2") as caught:
        parse(written(tmp_path, "a.pdf", b"%PDF"))
    assert "mlxforge[docs]" in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="python-docx"):
        check_extras({".md", ".docx"})
    check_extras({".md", ".py", ".csv"})


def test_a_small_file_that_unfolds_to_much_is_refused_before_it_is_parsed(tmp_path):
    def packed(name: str, member: str, parts: list[bytes]) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
            file.writelines(parts)
        assert (tmp_path / name).stat().st_size < 1 << 20
        return tmp_path / name

    markup = [b"<p>" * (1 << 18)] * 90  # 68 MB
    for name, member in (("a.docx", "word/document.xml"), ("a.pptx", "ppt/slides/slide1.xml"), ("a.epub", "a.xhtml")):
        assert "unfolds to more than 64 MB of markup" in refused(packed(name, member, markup))
    (tmp_path / "a.html").write_bytes(b"".join(markup))
    assert "larger than 64 MB" in refused(tmp_path / "a.html")
    cells = [b'<c r="A1"><v>1</v></c>', b" " * ((1 << 20) - 30), b'<c s="1" r="XFD1048576"><v>1</v></c>']
    sheet = "xl/worksheets/sheet1.xml"
    assert "a sheet of 1,048,576 rows and 16,384 columns" in refused(packed("a.xlsx", sheet, cells))
