"""Token counts of much text: each word is counted once with the model's tokenizer, then looked up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxforge.core.errors import ModelError
from mlxforge.data.pieces import anchor_ids, encode_pieces
from mlxforge.knowledge.pieces import WAYS, Ints, ends_of
from mlxforge.models.load import fast_tokenizer

LONG = 48  # characters; a longer piece is no word: it is cut where its tokens end, and not kept
LONG_ASCII = 96  # the same of what has no character beyond ASCII: names and rules, which are no sentences
LONGEST = 1 << 15  # characters of it that are encoded at a time
KEPT = 1 << 20  # words
HALF = 8  # bytes; a piece of at most two halves is looked up with all others of its text at once
SLOTS = 18  # bits of the number of a slot of the table for that
# What is not of a piece in the first, or in the second half of its 16 bytes: the byte 255 is in no UTF-8.
BEHIND = np.array([(1 << 64) - (1 << 8 * length) for length in range(HALF)] + [0], np.uint64)

# What tokenizers differ in; a counter adds up on this or says that it does not.
PROBE = (
    "The mill's wheel hasn't turned since 1984; it'll cost 12,345.67 to mend.\n\n"
    "# A heading\n\n- one, two;\n- three (four)\n\n    def area(w, h):\n        return w * h\n\n"
    "Grüße aus Köln… «vite», naïve café. 日本語の文章。もう一つ。 Привет, мир!\tTab, 👍🏽 and  two spaces. END\n"
    "func main() {\n\tif x {\n\t\treturn y\n\t}\n\tfor i := range z {\n\t\tvar s string\n\t\tfmt.Print(s)\n\t}\n}\n\n"
    "class A:\n  def b(self):\n    x = 1\n\n    if x:\n        return [\n            x,\n        ]\n\n\n"
    "<ul>\r\n  <li>a</li>\r\n</ul>\n"
)


Keys = npt.NDArray[np.uint64]


class Counter:
    """Counts tokens with a ``tokenizers.Tokenizer``.

    Attributes:
        exact: whether the counts of pieces add up to the count of a whole text, tried on a text made for it; where they do
            not (SentencePiece without a pre-tokenizer), a count is off by a few in a thousand.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.anchor = anchor_ids(tokenizer)
        whole = len(tokenizer.encode(PROBE, add_special_tokens=False).ids)
        for self.way in (*WAYS, WAYS[0]):
            self.known: dict[str, int] = {}
            self.table = Table()
            self.exact = self.count(PROBE) == whole
            if self.exact:
                break

    def count(self, text: str) -> int:
        """Tokens of a text, special ones around it not counted."""
        return int(self.pieces(text)[1].sum())

    def pieces(self, text: str) -> tuple[Ints, Ints]:
        """(ends, tokens) of the pieces of a text: where each ends, in characters, and its tokens. Text can be cut there."""
        raw = text.encode()
        ends = ends_of(raw, self.way)
        begins = np.concatenate(([0], ends[:-1])) if len(ends) else ends
        keys = _keys(raw, begins, ends - begins)
        tokens = self.table.find(keys)
        if len(missing := np.flatnonzero(tokens < 0)):
            found = [
                raw[begin:end].decode() for begin, end in zip(begins[missing].tolist(), ends[missing].tolist(), strict=True)
            ]
            tokens[missing] = self._found(found)
            self.table.keep(keys.take(missing, axis=1), tokens[missing])
        if len(raw) > len(text):
            ends = np.cumsum(np.frombuffer(raw, np.uint8) & 0xC0 != 0x80)[ends - 1]
        long = np.flatnonzero(tokens < 0)
        return self._cut(text, ends, tokens, long) if len(long) else (ends, tokens)

    def _found(self, found: list[str]) -> list[int]:
        """The tokens of each piece; -1 for long ones."""
        new = set(found).difference(self.known)  # not its keys: those would all be walked
        self._learn([piece for piece in new if len(piece) <= (LONG_ASCII if piece.isascii() else LONG)])
        return [self.known.get(piece, -1) for piece in found]

    def _learn(self, words: list[str]) -> None:
        if not words:
            return
        if len(self.known) + len(words) > KEPT:
            self.known.clear()
        ordered = sorted(words)
        encoded = encode_pieces(self.tokenizer, ordered, [False] * len(ordered), self.anchor)
        self.known.update((word, len(ids)) for word, ids in zip(ordered, encoded, strict=True))

    def _cut(self, text: str, ends: Ints, tokens: Ints, long: Ints) -> tuple[Ints, Ints]:
        """Puts the tokens of each long piece in its place."""
        spans = [(int(ends[at - 1]) if at else 0, int(ends[at])) for at in long]
        blocks = [[text[first : min(first + LONGEST, end)] for first in range(start, end, LONGEST)] for start, end in spans]
        encoded = iter(self.tokenizer.encode_batch([block for one in blocks for block in one], add_special_tokens=False))
        parts: list[tuple[Ints, Ints]] = []
        done = 0
        for at, (start, _), one in zip(long.tolist(), spans, blocks, strict=True):
            parts.append((ends[done:at], tokens[done:at]))
            for block in one:
                places, counts = _token_ends(next(encoded).offsets, len(block))
                parts.append((places + start, counts))
                start += len(block)
            done = at + 1
        parts.append((ends[done:], tokens[done:]))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _keys(raw: bytes, begins: Ints, lengths: Ints) -> Keys:
    """(2, pieces) the bytes of each piece as two numbers, its own ones where it has at most 16; zeros where it has more."""
    padded = raw + b"\xff" * 2 * HALF
    words = np.ndarray(len(raw) + HALF + 1, "<u8", padded, strides=(1,))  # that begin at each byte
    keys = np.stack([words.take(begins + at) | BEHIND.take(lengths - at, mode="clip") for at in (0, HALF)])
    keys[:, lengths > 2 * HALF] = 0
    return keys


class Table:
    """The tokens of pieces by their keys, one piece a slot: the last that came."""

    def __init__(self) -> None:
        self.keys = np.zeros((2, 1 << SLOTS), np.uint64)
        self.tokens = np.full(1 << SLOTS, -1)

    def find(self, keys: Keys) -> Ints:
        """(pieces,) the tokens of each, -1 where it is not kept."""
        slots = _slots(keys)
        same = (self.keys[0].take(slots) == keys[0]) & (self.keys[1].take(slots) == keys[1])
        return np.where(same, self.tokens.take(slots), -1)

    def keep(self, keys: Keys, tokens: Ints) -> None:
        """Keeps what has a key."""
        short = np.flatnonzero((tokens >= 0) & keys.any(axis=0))
        slots, first = np.unique(_slots(keys)[short], return_index=True)
        self.keys[:, slots], self.tokens[slots] = keys[:, short[first]], tokens[short[first]]


def _slots(keys: Keys) -> Ints:
    mixed = (keys[0] ^ (keys[1] * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(64 - SLOTS)).astype(np.int64)


def _token_ends(offsets: list[tuple[int, int]], length: int) -> tuple[Ints, Ints]:
    """(ends, tokens) of a text of ``length`` characters by the spans of its tokens: a character can be several tokens."""
    spans = np.array(offsets or [(0, length)], np.int64)
    ends = np.maximum.accumulate(spans[:, 1])
    following = np.append(spans[1:, 0], length)
    # A token ends a part where the next begins behind it, and where more of the text is done than before.
    last = np.flatnonzero((following >= ends) & (np.append(ends[1:], length + 1) > ends))
    places, counts = ends[last], np.diff(last + 1, prepend=0)
    counts[-1] += len(spans) - 1 - last[-1]
    places[-1] = length  # what no token spells belongs to the last
    return places, counts if offsets else counts * 0


def counter_of(model: Path) -> Counter:
    """The counter of a model folder's tokenizer.

    Raises:
        ModelError: the folder has no tokenizer.json.
    """
    tokenizer = fast_tokenizer(model)
    if tokenizer is None:
        raise ModelError("no tokenizer.json", where=str(model), fix="name a model that has one: --model tiny")
    return Counter(tokenizer)
