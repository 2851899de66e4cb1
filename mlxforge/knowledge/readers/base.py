"""What a reader gives: blocks of text in order, each knowing its heading and page."""

from __future__ import annotations

import codecs
import importlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mlxforge.core.errors import MissingExtraError

LARGEST = 1 << 28  # bytes of a file, or of what a packed one unfolds to
# Bytes of XML or HTML that are parsed at once: its tree in memory is about twenty times as large.
MARKUP = 1 << 26
MARKUP_SUFFIXES = (".xml", ".rels", ".html", ".htm", ".xhtml")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Unreadable(Exception):
    """A file that cannot be read: why, in a few words. The files beside it are read."""


@dataclass(slots=True)
class Block:
    """A part of a document; the texts of all blocks, joined, are the document before cleaning.

    Attributes:
        level: of the heading that the block begins with, 0 where there is none.
        title: that heading's text.
        page: page or slide, from 1.
        role: ``body``, or ``navigation`` for what surrounds the text of a web page.
    """

    text: str
    level: int = 0
    title: str = ""
    page: int | None = None
    role: str = "body"


class Entry(NamedTuple):
    """A line of a table of contents: its title is looked for on its page."""

    level: int
    title: str
    page: int


@dataclass
class Parsed:
    """A document as read.

    Attributes:
        title: from the file's metadata; empty where there is none.
        notes: what a reader had to pass over, counted, such as pages without text.
    """

    blocks: list[Block]
    title: str = ""
    contents: list[Entry] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(block.text for block in self.blocks)


def decoded(data: bytes) -> str:
    """The text of bytes in UTF-8, or in UTF-16 behind a byte order mark; line ends as they are.

    Raises:
        Unreadable: another encoding, or no text at all.
    """
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 at byte {error.start}: iconv -f ENCODING -t UTF-8 FILE") from error
    if "\0" in text:
        raise Unreadable("not text: it has zero bytes")
    return text


def need(module: str, package: str, use: str) -> Any:
    """Imports a module of the extra ``docs``."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(package, "docs", use) from None


@contextmanager
def unpacked(path: Path, *, markup: int = MARKUP, apart: bool = False) -> Iterator[zipfile.ZipFile]:
    """A zip file whose members together are not too large; ``markup`` bounds its XML and HTML, each
    member of it alone where they are read ``apart``.

    Raises:
        Unreadable: no zip file, an encrypted one, or one that unfolds to too much.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"\xd0\xcf\x11\xe0":  # the container of encrypted files and of Office before 2007
            raise Unreadable("encrypted, or of an Office before 2007")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.flag_bits & 1 for member in members):
                raise Unreadable("encrypted")
            if sum(member.file_size for member in members) > 4 * LARGEST:
                raise Unreadable(f"unfolds to more than {4 * LARGEST >> 20} MB")
            sizes = [member.file_size for member in members if member.filename.lower().endswith(MARKUP_SUFFIXES)]
            if (max if apart else sum)([0, *sizes]) > markup:
                raise Unreadable(f"unfolds to more than {markup >> 20} MB of markup: split it")
            yield archive
    except zipfile.BadZipFile as error:
        raise Unreadable("broken: not a whole file") from error


def heading(title: str, level: int, **more: Any) -> Block:
    """A heading as a line of its own, marked as Markdown does."""
    title = " ".join(title.split())
    return Block(f"{'#' * min(level, 6)} {title}\n\n", level, title, **more)


def paragraph(text: str, **more: Any) -> Block:
    """A paragraph, with an empty line behind it."""
    return Block(text.strip("\n") + "\n\n", **more)


def row(cells: list[str]) -> str:
    """A row of a table as a line: ``a | b | c``; empty cells at the end are left out."""
    flat = [" ".join(cell.split()) for cell in cells]
    while flat and not flat[-1]:
        flat.pop()
    return " | ".join(flat)
