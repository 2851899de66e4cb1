"""Long documents in pieces: bounded memory and work for all cores, with the same tokens as if nothing had been cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

PIECE = 1 << 16  # characters
ANCHOR = "\n"

# Where a cut changes no token, best first. Common tokenizers split text by a regex before they merge; these places are
# boundaries of all of them: after a lone newline, after several, before a space that begins a word.
CUTS = tuple(re.compile(pattern) for pattern in (r"(?<=\S\n)(?=\S)", r"(?<=\n)(?=\S)", r"(?<=\S)(?= \S)"))

T = TypeVar("T")


def cut_point(text: str, start: int, size: int) -> int:
    """Where the piece of ``text`` from ``start`` ends: the last good place in its second half, else after ``size`` characters.

    Looks at one character after ``start + size``, which must exist.
    """
    end = start + size
    for pattern in CUTS:
        places = [match.start() for match in pattern.finditer(text, start + size // 2, end + 1)]
        if places:
            return min(places[-1], end)
    return end


def pieces(parts: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """The text of ``parts`` in pieces of at most ``size`` characters, the same however the parts divide it."""
    buffer, start = "", 0
    for part in parts:
        buffer, start = buffer[start:] + part, 0
        while len(buffer) - start > size:
            stop = cut_point(buffer, start, size)
            yield buffer[start:stop]
            start = stop
    if start < len(buffer):
        yield buffer[start:]


def anchor_ids(tokenizer: Any) -> list[int]:
    """What continuations must be anchored with: nothing for most tokenizers.

    Tokenizers of the SentencePiece kind put a space before any text, so a piece on its own would gain one. Such a piece is
    encoded behind a newline, whose tokens (these) are then taken off: what is left are the tokens that follow a newline.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    whole, apart = ids(f"a{ANCHOR}a"), ids(f"a{ANCHOR}") + ids("a")
    return [] if whole == apart else ids(ANCHOR)


def encode_pieces(tokenizer: Any, texts: Sequence[str], firsts: Sequence[bool], anchor: list[int]) -> list[list[int]]:
    """Token ids of each piece, on all cores; ``firsts`` tells which begin a document. ``anchor`` is from :func:`anchor_ids`."""
    anchored = [bool(anchor) and not first for first in firsts]
    given = [ANCHOR + text if behind else text for text, behind in zip(texts, anchored, strict=True)]
    encoded = [list(encoding.ids) for encoding in tokenizer.encode_batch_fast(given, add_special_tokens=False)]
    for i, behind in enumerate(anchored):
        if behind and encoded[i][: len(anchor)] == anchor:
            encoded[i] = encoded[i][len(anchor) :]
        elif behind:  # the anchor merged with what follows: no better than the piece alone
            encoded[i] = list(tokenizer.encode(texts[i], add_special_tokens=False).ids)
    return encoded


def ahead(work: Callable[[Sequence[T]], list[Any]], batches: Iterable[Sequence[T]]) -> Iterator[tuple[Sequence[T], list[Any]]]:
    """Each batch with its result; the next is already being worked on, while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[Sequence[T], Future[list[Any]]] | None = None
        for batch in batches:
            begun = batch, pool.submit(work, batch)
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = begun
        if waiting:
            yield waiting[0], waiting[1].result()
