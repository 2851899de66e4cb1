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

# A word with the space before and the newlines after it, or what is left of white space. Common tokenizers never merge over
# the places between, so that the counts add up.
PIECE = re.compile(r" ?\S+\n*|\s+?(?= ?\S)|\s+")
LONG = 48  # characters; a longer piece is no word: it is cut where its tokens end, and not kept
LONGEST = 1 << 15  # characters of it that are encoded at a time
KEPT = 1 << 20  # words
Ints = npt.NDArray[np.int64]

# What tokenizers differ in; a counter adds up on this or says that it does not.
PROBE = (
    "The mill's wheel hasn't turned since 1984; it'll cost 12,345.67 to mend.\n\n"
    "# A heading\n\n- one, two;\n- three (four)\n\n    def area(w, h):\n        return w * h\n\n"
    "Grüße aus Köln… «vite», naïve café. 日本語の文章。もう一つ。 Привет, мир!\tTab, 👍🏽 and  two spaces. END\n"
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
        self.known: dict[str, int] = {}
        self.exact = self.count(PROBE) == len(tokenizer.encode(PROBE, add_special_tokens=False).ids)

    def count(self, text: str) -> int:
        """Tokens of a text, special ones around it not counted."""
        return int(self.pieces(text)[1].sum())

    def pieces(self, text: str) -> tuple[Ints, Ints]:
        """(ends, tokens) of the pieces of a text: where each ends, in characters, and its tokens. Text can be cut there."""
        found = PIECE.findall(text)
        known = self.known
        self._learn([piece for piece in set(found) if piece not in known and len(piece) <= LONG])
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        tokens = np.fromiter(map(known.get, found, repeat(-1)), np.int64, len(found))
        ends = np.cumsum(lengths)
        return self._cut(found, ends, tokens) if (tokens < 0).any() else (ends, tokens)

    def _learn(self, words: list[str]) -> None:
        if not words:
            return
        if len(self.known) + len(words) > KEPT:
            self.known.clear()
        ordered = sorted(words)
        encoded = encode_pieces(self.tokenizer, ordered, [False] * len(ordered), self.anchor)
        self.known.update((word, len(ids)) for word, ids in zip(ordered, encoded, strict=True))

    def _cut(self, found: list[str], ends: Ints, tokens: Ints) -> tuple[Ints, Ints]:
        """Puts the tokens of each long piece in its place."""
        parts: list[tuple[Ints, Ints]] = []
        done = 0
        for at in np.flatnonzero(tokens < 0):
            parts.append((ends[done:at], tokens[done:at]))
            parts.append(self._of_long(found[at], int(ends[at]) - len(found[at])))
            done = at + 1
        parts.append((ends[done:], tokens[done:]))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _of_long(self, piece: str, start: int) -> tuple[Ints, Ints]:
        ends: list[int] = []
        tokens: list[int] = []
        for first in range(0, len(piece), LONGEST):
            part = piece[first : first + LONGEST]
            offsets = self.tokenizer.encode(part, add_special_tokens=False).offsets
            pending = 0
            for (_, end), (after, _) in zip(offsets, [*offsets[1:], (len(part), 0)], strict=True):
                pending += 1
                if after >= end and end > (ends[-1] - start - first if ends else -1):  # a character can be several tokens
                    ends.append(start + first + end)
                    tokens.append(pending)
                    pending = 0
            if not ends or ends[-1] < start + first + len(part):
                ends.append(start + first + len(part))
                tokens.append(pending)
        return np.array(ends, np.int64), np.array(tokens, np.int64)


def counter_of(model: Path) -> Counter:
    """The counter of a model folder's tokenizer.

    Raises:
        ModelError: the folder has no tokenizer.json.
    """
    tokenizer = fast_tokenizer(model)
    if tokenizer is None:
        raise ModelError("no tokenizer.json", where=str(model), fix="name a model that has one: --model tiny")
    return Counter(tokenizer)
