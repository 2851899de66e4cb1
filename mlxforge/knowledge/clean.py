"""Cleaning as a table of named steps; each counts what it changed and can be turned off."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.knowledge.chunk import Heading, Text
from mlxforge.knowledge.readers.base import Block, Parsed
from mlxforge.knowledge.readers.table import CODE, READERS

PAGED = frozenset({"pdf"})
PAGES = frozenset({"html", "epub"})
PROSE = frozenset(reader.type for reader in READERS.values()) - set(CODE)  # in code every character means something
LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
LIGATURE = re.compile("[ﬀ-ﬆ]")
# Control characters but tab and line feed, marks of direction and of byte order, soft hyphens, and what is no character.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff]"
)
ASCII_CONTROL = bytes([*range(9), *range(11, 32), 127])
LINE_ENDS = {"\x0b": "\n", "\x0c": "\n", "\x85": "\n"}
BROKEN_WORD = re.compile(r"(\w*[^\W\d_])[-‐\xad]\n([^\W\d_]\w*)")
COMPOUND = re.compile(r"[^\W\d_]\w*(?:[-‐][^\W\d_]\w*)+")
WORD = re.compile(r"[^\W\d_]\w*")
PAGE_NUMBER = re.compile(
    r"\s*(?:[-–—|•]\s*)?(?:(?:page|seite|p\.|página|pagina)\s*)?(?:\d{1,4}|[ivxlc]{1,7})(?:\s*(?:/|of|von|de|sur|di)\s*\d{1,4})?"
    r"(?:\s*[-–—|•])?\s*",
    re.IGNORECASE,
)
LEADER = re.compile(r"^.*(?:\.[ \t]?){5,}[ \t]*(?:\d{1,4}|[ivxlc]{1,7})[ \t]*(?:\n|$)", re.MULTILINE)
EDGE = 2  # lines at the top and at the bottom of a page that can be repeated ones
TIMES = 3  # pages on which a line stands at the edge before it is a header
APART = 2  # at most this many pages between two of them: left and right pages differ

Blocks = list[Block]


class Step(NamedTuple):
    """``clean`` changes blocks in place and returns how often; ``types`` are the documents it is for, all where empty."""

    clean: Callable[[Blocks], int]
    types: frozenset[str]
    help: str


def control(blocks: Blocks) -> int:
    """Line ends as ``\\n``; other control characters out."""
    count = 0
    for block in blocks:
        if "\r" in block.text:
            count += block.text.count("\r")
            block.text = block.text.replace("\r\n", "\n").replace("\r", "\n")
        if _controls(block.text):
            block.text, found = CONTROL.subn(lambda match: LINE_ENDS.get(match[0], ""), block.text)
            count += found
    return count


def _controls(text: str) -> bool:
    if text.isascii():  # three times as quick
        raw = text.encode()
        return len(raw.translate(None, ASCII_CONTROL)) < len(raw)
    return CONTROL.search(text) is not None


def ligatures(blocks: Blocks) -> int:
    """``ﬁ`` as ``fi``."""
    count = 0
    for block in blocks:
        if not block.text.isascii():
            block.text, found = LIGATURE.subn(lambda match: LIGATURES[match[0]], block.text)
            count += found
    return count


def nfc(blocks: Blocks) -> int:
    """Letters and their accents as one character where there is one; counts blocks."""
    count = 0
    for block in blocks:
        if not block.text.isascii() and not unicodedata.is_normalized("NFC", block.text):
            block.text = unicodedata.normalize("NFC", block.text)
            count += 1
    return count


def navigation(blocks: Blocks) -> int:
    """Menus, headers and footers of a web page."""
    kept = [block for block in blocks if block.role != "navigation"]
    if not any(block.text.strip() for block in kept):  # a page that is all menu says what it says
        return 0
    count = len(blocks) - len(kept)
    blocks[:] = kept
    return count


def headers(blocks: Blocks) -> int:
    """Lines at the top or bottom of a page that neighbouring pages repeat, numbers aside; from the edge inwards, up to the
    first that is not repeated."""
    pages = [block.text.split("\n") for block in blocks]
    edges = [(number, side, places) for number, lines in enumerate(pages) for side, places in enumerate(_edges(lines))]
    seen: dict[tuple[str, int], list[int]] = defaultdict(list)
    for number, side, places in edges:
        for place in places:
            seen[_form(pages[number][place]), side].append(number)
    found: list[set[int]] = [set() for _ in pages]
    for number, side, places in edges:
        found[number].update(takewhile(lambda at: _repeated(seen[_form(pages[number][at]), side], number), places))  # noqa: B023
    for block, lines, gone in zip(blocks, pages, found, strict=True):
        block.text = "\n".join(line for place, line in enumerate(lines) if place not in gone)
    return sum(map(len, found))


def _edges(lines: Sequence[str]) -> tuple[list[int], list[int]]:
    """The first and the last lines that are not empty, each from the edge inwards."""
    filled = [place for place, line in enumerate(lines) if line.strip()]
    near = min(EDGE, len(filled) // 2)
    return filled[:near], filled[::-1][:near]


def _form(line: str) -> str:
    """A line without its numbers; roman ones of a preface too."""
    return re.sub(r"\d+|\b[ivxlc]+\b", "#", " ".join(line.split()).lower())


def _repeated(numbers: Sequence[int], number: int) -> bool:
    """Whether this page is one of a run of pages, none far from the next."""
    at = bisect_left(numbers, number)
    first = last = at
    while first > 0 and numbers[first] - numbers[first - 1] <= APART and at - first < TIMES:
        first -= 1
    while last + 1 < len(numbers) and numbers[last + 1] - numbers[last] <= APART and last - at < TIMES:
        last += 1
    return len(set(numbers[first : last + 1])) >= TIMES


def page_numbers(blocks: Blocks) -> int:
    """Lines at the edge of a page that are its number and nothing else."""
    count = 0
    for block in blocks:
        lines = block.text.split("\n")
        filled = [place for place, line in enumerate(lines) if line.strip()]
        for place in sorted({*filled[:1], *filled[-1:]}, reverse=True):
            if len(filled) > 1 and PAGE_NUMBER.fullmatch(lines[place]):
                del lines[place]
                count += 1
        block.text = "\n".join(lines)
    return count


def leaders(blocks: Blocks) -> int:
    """Lines of a printed table of contents: a title, dots, a page number. The headings are known without them."""
    count = 0
    for block in blocks:
        block.text, found = LEADER.subn("", block.text)
        count += found
    return count


def hyphens(blocks: Blocks) -> int:
    """Words broken at the end of a line made whole. The hyphen stays where the document has the word with it elsewhere, and
    not without."""
    broken = {match.group(1, 2) for block in blocks for match in BROKEN_WORD.finditer(block.text)}
    if not broken:
        return 0
    compounds, words = set[str](), set[str]()
    for block in blocks:
        whole = BROKEN_WORD.sub(" ", block.text).lower()
        compounds.update(COMPOUND.findall(whole))
        words.update(WORD.findall(whole))

    def join(match: re.Match[str]) -> str:
        first, second = match[1], match[2]
        keep = f"{first}-{second}".lower() in compounds and (first + second).lower() not in words
        return f"{first}-{second}" if keep or second[0].isupper() else first + second

    count = 0
    for block in blocks:
        block.text, found = BROKEN_WORD.subn(join, block.text)
        count += found
    return count


def blank_lines(blocks: Blocks) -> int:
    """More than two empty lines in a row, and spaces at the ends of lines."""
    count = 0
    for block in blocks:
        block.text, spaces = re.subn(r"[ \t]+(?=\n)", "", block.text)
        block.text, lines = re.subn(r"\n{4,}", "\n\n\n", block.text)
        count += spaces + lines
    return count


# In the order in which they run: what looks at lines comes after line ends are one, hyphens after headers between pages.
STEPS: dict[str, Step] = {
    "control": Step(control, frozenset(), "control characters, other line ends than \\n"),
    "navigation": Step(navigation, PAGES, "menus, headers and footers of web pages"),
    "headers": Step(headers, PAGED, "headers and footers that pages repeat"),
    "page-numbers": Step(page_numbers, PAGED, "page numbers alone on a line"),
    "leaders": Step(leaders, PAGED, "lines of a printed table of contents"),
    "ligatures": Step(ligatures, PROSE, "ligatures such as \ufb01"),
    "hyphens": Step(hyphens, PAGED, "words broken at the end of a line"),
    "spaces": Step(blank_lines, PAGED | PAGES, "spaces at line ends, runs of empty lines"),
    "nfc": Step(nfc, PROSE, "accents apart from their letters"),
}


def chosen(keep: Iterable[str]) -> tuple[str, ...]:
    """The steps that run where those of ``keep`` are turned off.

    Raises:
        ConfigError: there is no such step.
    """
    off = set(keep)
    for name in sorted(off - STEPS.keys()):
        raise ConfigError(f"no cleaning step '{name}'", where="--keep", fix=did_you_mean(name, STEPS))
    return tuple(name for name in STEPS if name not in off)


def clean(parsed: Parsed, type_: str, steps: Sequence[str]) -> dict[str, int]:
    """Runs the steps over a document's blocks; returns what each changed, steps that changed nothing left out."""
    counts: Counter[str] = Counter()
    for name in steps:
        if not STEPS[name].types or type_ in STEPS[name].types:
            counts[name] += STEPS[name].clean(parsed.blocks)
    return {name: count for name, count in counts.items() if count}


def assemble(parsed: Parsed) -> Text:
    """The blocks as one text with the places of its headings and pages."""
    parts: list[str] = []
    found: list[Heading] = []
    pages: list[int] = []
    place = 0
    for block in parsed.blocks:
        while block.page and len(pages) < block.page:
            pages.append(place)
        if block.level:
            found.append(Heading(place, block.level, block.title))
        parts.append(block.text)
        place += len(block.text)
    text = "".join(parts)
    return Text(text, [*found, *_listed(parsed, text, pages)] if parsed.contents else found, pages)


def _listed(parsed: Parsed, text: str, pages: Sequence[int]) -> list[Heading]:
    """The lines of the table of contents that stand on their page, in the order of the text."""
    found: list[Heading] = []
    last = 0
    for level, title, page in parsed.contents:
        if page > len(pages):
            continue
        end = pages[page] if page < len(pages) else len(text)
        pattern = r"\s+".join(map(re.escape, title.split()))
        match = re.compile(
            rf"^[ \t]*(?:(?:chapter|kapitel|appendix)?\s*[\dA-Z.]*\s+)?{pattern}", re.MULTILINE | re.IGNORECASE
        ).search(text, max(last, pages[page - 1]), end)
        if match:
            found.append(Heading(match.start(), level, title))
            last = match.end()
    return found
