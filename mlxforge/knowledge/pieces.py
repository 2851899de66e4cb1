"""Where a text may be cut for counting: what the regular expressions of WAYS find, many places at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

# What a byte of UTF-8 is. Spaces and newlines are known well; a text is looked at closely around other white space.
SPACE, NEWLINE, OTHER, LETTER, BEYOND = 1, 2, 4, 8, 16
KINDS = np.zeros(256, np.uint8)
for letters, kind in (
    (b" ", SPACE),
    (b"\n", NEWLINE),
    (b"\t\v\f\r\x1c\x1d\x1e\x1f", OTHER),
    (b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", LETTER),
    (bytes(range(128, 256)), BEYOND),
):
    KINDS[list(letters)] = kind
# White space beyond ASCII, by its last two bytes: all of it ends so, and little else does.
WIDE = np.zeros(1 << 16, bool)
for letter in "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000":
    WIDE[int.from_bytes(letter.encode()[-2:], "big")] = True


class Seen(NamedTuple):
    """Of each place between two bytes: what is before and behind it. (bytes - 1,) each."""

    before: Bytes
    after: Bytes
    lead: Bools  # a space behind it, and a word behind that


def _words(seen: Seen) -> tuple[Bools, Bools]:
    ends = seen.before == NEWLINE
    spaced = seen.after == SPACE
    places = seen.lead | (ends & (seen.after != NEWLINE)) | ((seen.before & (SPACE | NEWLINE) == 0) & spaced)
    return places, (seen.before == SPACE) & (seen.after == NEWLINE)


def _gpt2(seen: Seen) -> tuple[Bools, Bools]:
    white = seen.after & (SPACE | NEWLINE) > 0
    last = np.append(white[:-1] & ~white[1:], False)
    inside = seen.before & (SPACE | NEWLINE) == 0
    return last | (inside & white) | ((seen.before == NEWLINE) & ~white), np.zeros(len(white), bool)


def _llama3(seen: Seen) -> tuple[Bools, Bools]:
    white = seen.after & (SPACE | NEWLINE) > 0
    places = seen.lead | ((seen.before == NEWLINE) & ~white) | ((seen.before == LETTER) & white)
    return places, (seen.before == BEYOND) & white & ~seen.lead


class Way(NamedTuple):
    """A way to cut.

    Attributes:
        pattern: what a piece is.
        places: of a text whose white space is spaces and newlines, where it is cut, and where only the pattern can tell.
    """

    pattern: re.Pattern[str]
    places: Callable[[Seen], tuple[Bools, Bools]]


# The quick ones first: the first whose counts add up is taken.
WAYS = (
    # A word with the space before and the newlines after it, or what is left of white space.
    Way(re.compile(r" ?\S+\n*|\s+?(?= ?\S)|\s+"), _words),
    # As GPT-2 cuts white space, which merges a line's end with the indent after it: all but its last character.
    Way(re.compile(r" ?\S+|\s+(?!\S)|\s"), _gpt2),
    # As Llama 3 does, which merges a line's end with the sign before it, and a tab with the word after it.
    Way(re.compile(r"[^\S\r\n]?\S+(?:(?<![^\W_])\s*?(?=[^\S\r\n]?\S|\Z))?|\s+?(?=[^\S\r\n]?\S|\Z)"), _llama3),
)


def ends_of(raw: bytes, way: Way) -> Ints:
    """Where the pieces of a text in UTF-8 end, in bytes; as ``way.pattern.findall`` cuts it."""
    if not raw:
        return np.zeros(0, np.int64)
    data = np.frombuffer(raw, np.uint8)
    kinds = KINDS[data]
    after = kinds[1:]
    white = after & (SPACE | NEWLINE) > 0
    lead = np.zeros(len(after), bool)
    lead[:-1] = (after[:-1] == SPACE) & ~white[1:]
    cut = np.ones(len(data), bool)  # behind each byte
    cut[:-1], unsure = way.places(Seen(kinds[:-1], after, lead))
    odd = _white(data, kinds)
    near = odd.copy()
    near[:-1] |= unsure
    near[0] |= kinds[0] & (SPACE | NEWLINE) > 0
    if near.any():
        # Between two spaces that stand alone between words the pattern finds what it would find in the whole.
        word = (kinds & (SPACE | NEWLINE) == 0) & ~odd
        alone = np.flatnonzero(word[:-2] & (kinds[1:-1] == SPACE) & word[2:]) + 1
        _look(raw, cut, np.flatnonzero(near), alone, way.pattern)
    return np.flatnonzero(cut) + 1


def _white(data: Bytes, kinds: Bytes) -> Bools:
    """The bytes of white space other than spaces and newlines."""
    odd = kinds == OTHER
    if (kinds == BEYOND).any():
        pairs = data[:-1].astype(np.uint16) << 8 | data[1:]
        last = np.flatnonzero(WIDE[pairs])
        for back in (0, 1):
            odd[last + back] = True
        odd[np.maximum(last - 1, 0)] |= data[last] & 0xC0 == 0x80
    return odd


def _look(raw: bytes, cut: Bools, near: Ints, alone: Ints, pattern: re.Pattern[str]) -> None:
    """Puts what the pattern finds around the places ``near`` into ``cut``."""
    bounds = np.concatenate(([0], alone, [len(raw)]))
    last = np.unique(bounds.searchsorted(near, "right"))
    for first, stop in zip(bounds[last - 1].tolist(), bounds[last].tolist(), strict=True):
        cut[first : stop - 1] = False
        place = first
        for piece in pattern.findall(raw[first:stop].decode()):
            place += len(piece) if piece.isascii() else len(piece.encode())
            cut[place - 1] = True
