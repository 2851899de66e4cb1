"""Token counts of much text: each word is counted once with the model's tokenizer, then looked up."""

from __future__ import annotations

import re
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxforge.core.errors import ModelError
from mlxforge.data.pieces import anchor_ids, encode_pieces
from mlxforge.models.load import fast_tokenizer

# Where a text may be cut for counting, the quick way first: the first whose counts add up is taken.
PIECES = (
    # A word with the space before and the newlines after it, or what is left of white space.
    re.compile(r" ?\S+\n*|\s+?(?= ?\S)|\s+"),
    # As GPT-2 cuts white space, which merges a line's end with the indent after it: all but its last character.
    re.compile(r" ?\S+|\s+(?!\S)|\s"),
    # As Llama 3 does, which merges a line's end with the sign before it, and a tab with the word after it.
    re.compile(r"[^\S\r\n]?\S+(?:(?<![^\W_])\s*?(?=[^\S\r\n]?\S|\Z))?|\s+?(?=[^\S\r\n]?\S|\Z)"),
)
LONG = 48  # characters; a longer piece is no word: it is cut where its tokens end, and not kept
LONG_ASCII = 96  # the same of what has no character beyond ASCII: names and rules, which are no sentences
LONGEST = 1 << 15  # characters of it that are encoded at a time
KEPT = 1 << 20  # words
BITS = 8  # of a known word's length, below its tokens
LENGTH = (1 << BITS) - 1
Ints = npt.NDArray[np.int64]

# What tokenizers differ in; a counter adds up on this or says that it does not.
PROBE = (
    "The mill's wheel hasn't turned since 1984; it'll cost 12,345.67 to mend.\n\n"
    "# A heading\n\n- one, two;\n- three (four)\n\n    def area(w, h):\n        return w * h\n\n"
    "Grüße aus Köln… «vite», naïve café. 日本語の文章。もう一つ。 Привет, мир!\tTab, 👍🏽 and  two spaces. END\n"
    "func main() {\n\tif x {\n\t\treturn y\n\t}\n\tfor i := range z {\n\t\tvar s string\n\t\tfmt.Print(s)\n\t}\n}\n\n"
    "class A:\n  def b(self):\n    x = 1\n\n    if x:\n        return [\n            x,\n        ]\n\n\n"
    "<ul>\r\n  <li>a</li>\r\n</ul>\n"
)


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
        for self.pattern in (*PIECES, PIECES[0]):
            self.known: dict[str, int] = {}
            self.exact = self.count(PROBE) == whole
            if self.exact:
                break

    def count(self, text: str) -> int:
        """Tokens of a text, special ones around it not counted."""
        return int(self.pieces(text)[1].sum())

    def pieces(self, text: str) -> tuple[Ints, Ints]:
        """(ends, tokens) of the pieces of a text: where each ends, in characters, and its tokens. Text can be cut there."""
        found = self.pattern.findall(text)
        known = self.known
        # A set less a dict, not its keys: those would all be walked.
        self._learn(
            [piece for piece in set(found).difference(known) if len(piece) <= (LONG_ASCII if piece.isascii() else LONG)]
        )
        seen = np.fromiter(map(known.get, found, repeat(-1)), np.int64, len(found))
        if (seen >= 0).all():
            return np.cumsum(seen & LENGTH), seen >> BITS
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        return self._cut(found, np.cumsum(lengths), seen >> BITS)

    def _learn(self, words: list[str]) -> None:
        if not words:
            return
        if len(self.known) + len(words) > KEPT:
            self.known.clear()
        ordered = sorted(words)
        encoded = encode_pieces(self.tokenizer, ordered, [False] * len(ordered), self.anchor)
        self.known.update((word, len(ids) << BITS | len(word)) for word, ids in zip(ordered, encoded, strict=True))

    def _cut(self, found: list[str], ends: Ints, tokens: Ints) -> tuple[Ints, Ints]:
        """Puts the tokens of each long piece in its place."""
        long = [int(at) for at in np.flatnonzero(tokens < 0)]
        blocks = [[found[at][first : first + LONGEST] for first in range(0, len(found[at]), LONGEST)] for at in long]
        encoded = iter(self.tokenizer.encode_batch([block for one in blocks for block in one], add_special_tokens=False))
        parts: list[tuple[Ints, Ints]] = []
        done = 0
        for at, one in zip(long, blocks, strict=True):
            parts.append((ends[done:at], tokens[done:at]))
            start = int(ends[at]) - len(found[at])
            for block in one:
                places, counts = _token_ends(next(encoded).offsets, len(block))
                parts.append((places + start, counts))
                start += len(block)
            done = at + 1
        parts.append((ends[done:], tokens[done:]))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


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
