"""Files that are text already: read as they stand, with the places of their headings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlxforge.knowledge.readers.base import Block, Parsed, decoded

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
HASHES = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*\r?\n?$")
SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*\r?\n?$")
FRONT = re.compile(r"---[ \t]*\r?\n(.*?\r?\n)(?:---|\.\.\.)[ \t]*\r?\n", re.DOTALL)
FRONT_TITLE = re.compile(r"^title:[ \t]*(['\"]?)(.+?)\1[ \t]*\r?$", re.MULTILINE)
ADORNMENT = re.compile(r"([!-/:-@[-`{-~])\1+[ \t]*\r?\n?$")
# A definition at the margin, in the words of most languages.
DEFINITION = re.compile(
    r"^(?:(?:export|default|public|private|protected|internal|static|abstract|final|async|pub(?:\([a-z]+\))?|unsafe|open|sealed|"
    r"data|inline|extern)\s+)*(?:def|class|func|fun|fn|function|sub|struct|enum|union|trait|impl|interface|protocol|extension|module|"
    r"namespace|object|record|package|contract|defmodule|defn|defun)\b[ \t*]*([^\s({:<;=]+)",
    re.MULTILINE,
)

Mark = tuple[int, int, str]  # where a heading begins, its level, its title


def _text(path: Path) -> str:
    return decoded(path.read_bytes())


def split_at(text: str, marks: Iterable[Mark]) -> list[Block]:
    """The text in blocks, one a heading, and one for what stands before the first."""
    blocks: list[Block] = []
    last, level, title = 0, 0, ""
    for place, next_level, next_title in marks:
        if place > last:
            blocks.append(Block(text[last:place], level, title))
        last, level, title = place, next_level, next_title
    return [*blocks, Block(text[last:], level, title)]


def read_text(path: Path) -> Parsed:
    """Plain text: one block."""
    return Parsed([Block(_text(path))])


def read_code(path: Path) -> Parsed:
    """Source code; its definitions at the margin are its headings."""
    text = _text(path)
    return Parsed(split_at(text, ((match.start(), 1, match[1]) for match in DEFINITION.finditer(text))), path.name)


def read_markdown(path: Path) -> Parsed:
    """Markdown; a title in its front matter is the document's."""
    text = _text(path)
    front = FRONT.match(text)
    title = FRONT_TITLE.search(front[1]) if front else None
    return Parsed(split_at(text, markdown_headings(text, front.end() if front else 0)), title[2] if title else "")


def markdown_headings(text: str, start: int = 0) -> Iterator[Mark]:
    """Headings of both kinds, outside of fenced code."""
    fence, above, begun = "", "", 0  # `above`: the line of a paragraph of one line
    place = start
    for line in text[start:].splitlines(keepends=True):
        if match := FENCE.match(line):
            if not fence:
                fence = match[1]
            elif line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
            above = ""
        elif fence:
            pass
        elif match := HASHES.match(line):
            yield place, len(match[1]), match[2] or ""
            above = ""
        elif above and (match := SETEXT.match(line)):
            yield begun, 1 if match[1][0] == "=" else 2, above
            above = ""
        else:
            alone = place == start or text.endswith(("\n\n", "\r\n\r\n"), start, place)
            plain = bool(line.strip()) and not line.startswith(("    ", "\t", ">", "|", "-", "*", "+"))
            above, begun = (line.strip(), place) if alone and plain else ("", 0)
        place += len(line)


def read_rst(path: Path) -> Parsed:
    """reStructuredText; the level of a heading is the order in which its adornment occurs first."""
    text = _text(path)
    return Parsed(split_at(text, rst_headings(text)))


def rst_headings(text: str) -> Iterator[Mark]:
    """Titles with an adornment below, or above and below."""
    lines = text.splitlines(keepends=True)
    places = [0]
    for line in lines:
        places.append(places[-1] + len(line))
    styles: list[str] = []
    for i in range(1, len(lines)):
        title, under = lines[i - 1].rstrip(), ADORNMENT.match(lines[i])
        blank = i < 2 or not lines[i - 2].strip()
        over = None if blank else ADORNMENT.match(lines[i - 2])
        if not under or not title.strip() or ADORNMENT.match(lines[i - 1]) or len(lines[i].rstrip()) < len(title.strip()):
            continue
        if over and over[1] == under[1]:
            style, first = under[1] * 2, i - 2
        elif blank and not title.startswith(" "):
            style, first = under[1], i - 1
        else:
            continue
        if style not in styles:
            styles.append(style)
        yield places[first], styles.index(style) + 1, title.strip()
