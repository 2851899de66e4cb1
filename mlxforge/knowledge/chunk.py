"""A cleaned document cut into chunks: at headings, else paragraphs, lines, sentences, words; nothing lost, nothing doubled."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlxforge.core.errors import ConfigError
from mlxforge.knowledge.count import Counter
from mlxforge.knowledge.store import Chunk

SIZE, OVERLAP = 500, 50  # tokens
LEAST = 0.4  # of a chunk's tokens: a better place to cut is not looked for before
# How good a place to cut is.
INSIDE, WORD, SENTENCE, LINE, PARAGRAPH, HEADING = range(6)
BEST_FIRST = (HEADING, PARAGRAPH, LINE, SENTENCE, WORD, INSIDE)
# What a character is, as flags by its code.
SPACE, NEWLINE, STOP, FULL_STOP, CLOSER = 1, 2, 4, 8, 16
FLAGS = np.zeros(0x110000, np.uint8)
for letters, flag in (
    (" \t\n\r\f\v\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u3000", SPACE),
    ("\n", NEWLINE),
    (".!?…", STOP),
    ("。！？", FULL_STOP),  # no space follows these
    ("\"'”’»)]*_", CLOSER),
):
    FLAGS[[ord(letter) for letter in letters]] |= flag

Ints = npt.NDArray[np.int64]


class Heading(NamedTuple):
    """A heading of level 1, 2, … that begins at character ``place``."""

    place: int
    level: int
    title: str


@dataclass(frozen=True)
class Text:
    """A document as it is stored: its text, its headings in order, and where each page begins (page 1 first), if it has any."""

    text: str
    headings: Sequence[Heading] = ()
    pages: Sequence[int] = ()


def chunks(document: Text, counter: Counter, size: int = SIZE, overlap: int = OVERLAP) -> list[Chunk]:
    """The document in chunks; their texts joined are ``document.text``.

    A passage (overlap and text) has at most ``size`` tokens, unless a single word has more. The overlap, at most
    ``overlap`` tokens, begins at a sentence where it can; a chunk that begins at a heading has none.

    Raises:
        ConfigError: the overlap leaves no room for text.
    """
    if not 0 <= overlap <= size // 2:
        fix = f"at most {size // 2}" if size >= 0 else "both above 0"
        raise ConfigError(f"an overlap of {overlap} tokens in chunks of {size}", where="--overlap", fix=fix)
    ends, tokens = counter.pieces(document.text)
    if not len(ends):
        return []
    total = array("q", np.concatenate(([0], np.cumsum(tokens))).tobytes())
    cuts = np.concatenate(([0], ends))  # (N + 1,) where text may be cut
    places = array("q", cuts.tobytes())
    strength = strengths(document, cuts)
    best, begins = strength.tobytes(), np.minimum(strength, SENTENCE).tobytes()
    paths = heading_paths(document.headings)
    starts = [heading.place for heading in document.headings]
    found: list[Chunk] = []
    first = last = 0  # places: of the chunk, and of its overlap
    while first < len(ends):
        stop = _stop(total, best, last, first, size)
        begin, end = places[first], places[stop]
        # The heading that a chunk begins with, or the one above it; white space may stand before a heading.
        above = bisect_right(starts, begin + _blank(document.text, begin, end)) - 1 if starts else -1
        page = bisect_right(document.pages, begin) or None
        heading = paths[above] if above >= 0 else ""
        counted = total[stop] - total[last]
        found.append(Chunk(document.text[begin:end], counted, heading, page, begin, end, begin - places[last]))
        last = stop if best[stop] == HEADING else _overlap(total, begins, first, stop, overlap)
        first = stop
        if first < len(ends) and total[first + 1] - total[last] > size:  # no room for the next word behind it
            last = first
    return found


def _stop(total: Sequence[int], strength: bytes, last: int, first: int, size: int) -> int:
    """The place to cut after: the last of the best places that the size allows."""
    limit = max(bisect_right(total, total[last] + size, first) - 1, first + 1)
    if limit >= len(total) - 1:
        return len(total) - 1
    least = max(bisect_left(total, total[last] + round(LEAST * size), last), first + 1)
    for kind in BEST_FIRST:
        if (at := strength.rfind(kind, least, limit + 1)) >= 0:
            return at
    return limit


def _overlap(total: Sequence[int], strength: bytes, first: int, stop: int, overlap: int) -> int:
    """The place where the next chunk's overlap begins: after a sentence, else a word, inside this chunk."""
    if not overlap:
        return stop
    least = bisect_left(total, total[stop] - overlap, first)
    for kind in BEST_FIRST:
        if (at := strength.find(kind, least, stop)) >= 0:
            return at
    return stop


def strengths(document: Text, places: Ints) -> npt.NDArray[np.uint8]:
    """(N,) how good each place is to cut at, from the characters around it."""
    flags = FLAGS[np.frombuffer(document.text.encode("utf-32-le", "surrogatepass"), np.uint32)]  # (characters,)
    last = len(flags) - 1
    before, after = flags[np.maximum(places - 1, 0)], flags[np.minimum(places, last)]
    second = flags[np.maximum(places - 2, 0)]
    strength = ((before | after) & SPACE).astype(np.uint8)  # WORD or INSIDE
    strength[_ends_sentence(flags, places) & (after & SPACE > 0) | (before & FULL_STOP > 0)] = SENTENCE
    newline = before & NEWLINE > 0
    strength[newline] = LINE
    strength[newline & (second & NEWLINE > 0) & (places > 1)] = PARAGRAPH
    if document.headings:
        begun = np.array([heading.place for heading in document.headings], np.int64)
        at = places.searchsorted(begun)
        strength[at[places.take(at, mode="clip") == begun]] = HEADING
    return strength


def _ends_sentence(flags: npt.NDArray[np.uint8], places: Ints) -> npt.NDArray[np.bool_]:
    """Whether a stop stands before each place, behind up to two closing marks."""
    at = np.maximum(places - 1, 0)
    for _ in range(2):
        at = np.where(flags[at] & CLOSER > 0, np.maximum(at - 1, 0), at)
    return flags[at] & STOP > 0


def heading_paths(headings: Sequence[Heading]) -> list[str]:
    """For each heading its path from the top, joined by ' > '."""
    paths: list[str] = []
    open_ones: list[Heading] = []
    for heading in headings:
        open_ones = [*(one for one in open_ones if one.level < heading.level), heading]
        paths.append(" > ".join(one.title for one in open_ones))
    return paths


def _blank(text: str, begin: int, end: int) -> int:
    """Characters of white space at ``begin``."""
    part = text[begin : min(end, begin + 200)]
    return len(part) - len(part.lstrip())
