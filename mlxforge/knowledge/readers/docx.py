"""DOCX: headings by style, lists, tables as rows, footnotes at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxforge.knowledge.readers.base import Block, Parsed, heading, need, paragraph, row, unpacked

STYLE = re.compile(r"heading (\d)", re.IGNORECASE)
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
LETTERS = {f"{W}tab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-"}
NOTES = ("/word/footnotes.xml", "/word/endnotes.xml")


def read_docx(path: Path) -> Parsed:
    """Paragraphs and tables in order; what was deleted with changes tracked is left out, what was inserted is kept."""
    docx = need("docx", "python-docx", "reading DOCX")
    with unpacked(path):
        document = docx.Document(str(path))
    blocks: list[Block] = []
    for item in document.iter_inner_content():
        blocks += _table(item._tbl) if hasattr(item, "rows") else _paragraph(item)
    for part in document.part.package.iter_parts():
        if str(part.partname) in NOTES:
            blocks += _notes(part.blob)
    return Parsed(blocks, str(document.core_properties.title or "").strip())


def _paragraph(item: Any) -> list[Block]:
    text = "".join(_letters(item._p))
    if not text.strip():
        return []
    style = str(item.style.name if item.style is not None else "")
    if match := STYLE.match(style):
        return [heading(text, int(match[1]))]
    if style == "Title":
        return [heading(text, 1)]
    numbered = style.startswith("List") or item._p.find(f"{W}pPr/{W}numPr") is not None
    return [Block(f"- {text.strip()}\n")] if numbered else [paragraph(text)]


def _letters(node: Any) -> Iterator[str]:
    """The text below a node, in order; of a drawing that is there twice, the newer form."""
    for child in node:
        if child.tag == FALLBACK:
            continue
        if child.tag == f"{W}t":
            yield child.text or ""
        elif child.tag in LETTERS:
            yield LETTERS[child.tag]
        elif child.tag == f"{W}p":  # a text box
            yield from ("\n", *_letters(child), "\n")
        elif child.tag != f"{W}pPr":
            yield from _letters(child)


def _table(table: Any) -> list[Block]:
    """A line a row; a cell's paragraphs stand on one line."""
    lines = []
    for line in table.iter(f"{W}tr"):
        cells = [" ".join("".join(_letters(p)) for p in cell.iter(f"{W}p")) for cell in line.findall(f"{W}tc")]
        lines.append(row(cells))
    text = "\n".join(line for line in lines if line)
    return [paragraph(text)] if text else []


def _notes(blob: bytes) -> list[Block]:
    from lxml import etree

    root = etree.fromstring(blob, etree.XMLParser(resolve_entities=False, no_network=True))
    texts = [" ".join("".join(_letters(note)).split()) for note in root]
    return [paragraph(text) for text in texts if text]
