"""PDF, by PDFium: text in reading order, the page of every block, and the table of contents."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mlxforge.knowledge.readers.base import Block, Entry, Parsed, Unreadable, need

PASSWORD = 4  # PDFium's number of this error
WITHOUT = "pages without text"
# PDFium joins a word that is broken at the end of a line and puts one of these in place of the hyphen and the line's end.
HYPHENS = ("\x02", "\ufffe")


def read_pdf(path: Path) -> Parsed:
    """A block a page."""
    pdfium = need("pypdfium2", "pypdfium2", "reading PDF")
    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        encrypted = getattr(error, "err_code", None) == PASSWORD or "password" in str(error).lower()
        raise Unreadable("encrypted: it needs a password" if encrypted else "broken: not a whole PDF") from error
    try:
        return _read(document)
    finally:
        document.close()


def _read(document: Any) -> Parsed:
    blocks = [Block(_page(document, number), page=number + 1) for number in range(len(document))]
    empty = sum(not block.text.strip() for block in blocks)
    if empty == len(blocks):
        raise Unreadable("no text, only images: read it with OCR first, such as ocrmypdf")
    title = str(document.get_metadata_dict().get("Title") or "").strip()
    return Parsed(blocks, title, _contents(document), {WITHOUT: empty} if empty else {})


def _page(document: Any, number: int) -> str:
    page = document[number]
    try:
        text = page.get_textpage()
        try:
            found: str = text.get_text_bounded()
        finally:
            text.close()
    finally:
        page.close()
    for mark in HYPHENS:
        found = found.replace(mark, "-\n")
    # A stop between this page and the next: PDFium ends a page without one.
    return found.replace("\r\n", "\n").rstrip() + "\n" if found.strip() else ""


def _contents(document: Any) -> list[Entry]:
    logging.getLogger("pypdfium2").setLevel(logging.ERROR)  # circles in the contents are left out
    found = []
    for mark in document.get_toc():
        target = mark.get_dest()
        page = target.get_index() if target else None
        if page is not None and (title := " ".join(str(mark.get_title()).split())):
            found.append(Entry(mark.level + 1, title, page + 1))
    return found
