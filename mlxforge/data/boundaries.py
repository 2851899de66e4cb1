"""How good a place each token is to end a window after, from token ids alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Marks = npt.NDArray[np.uint8]  # (vocabulary,) the flags below, by token id

NEWLINE, PARAGRAPH, BLANK, STOP, SPACED, FULL_STOP = 1, 2, 4, 8, 16, 32
HARD, SENTENCE, LINE, BREAK = 0, 1, 2, 3  # strength of a boundary

STOPS = (".", "!", "?", "…")
FULL_STOPS = ("。", "！", "？")  # sentences in these scripts are not followed by a space
CLOSERS = "\"'”’»)]*_"


def token_marks(tokenizer: Any, size: int) -> Marks:
    """What the text of each of ``size`` token ids tells: built once a vocabulary."""
    # Decoded behind another token, because decoders of the SentencePiece kind take off a text's first space.
    before = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
    prefix = tokenizer.decode(before, skip_special_tokens=False)
    texts = tokenizer.decode_batch([[*before, token] for token in range(size)], skip_special_tokens=False)
    return np.fromiter((mark(text.removeprefix(prefix)) for text in texts), np.uint8, size)


def mark(text: str) -> int:
    """The flags of a token with this text."""
    body = text.rstrip()
    newlines = text.count("\n", len(body))
    found = SPACED if text[:1].isspace() else 0
    found |= (NEWLINE if newlines else 0) | (PARAGRAPH if newlines > 1 else 0) | (BLANK if text and not body else 0)
    end = body.rstrip(CLOSERS)
    return found | (STOP if end.endswith(STOPS) else 0) | (FULL_STOP if end.endswith(FULL_STOPS) else 0)


def strengths(tokens: npt.NDArray[Any], marks: Marks) -> npt.NDArray[np.uint8]:
    """(N,) strength of a cut after each of N tokens in a row: paragraph 3, newline 2, sentence end 1, else 0."""
    seen = marks[tokens]
    newline = (seen & NEWLINE) > 0
    paragraph = (seen & PARAGRAPH) > 0
    # Two newlines as two tokens; white space between them has been merged into one of them or is a token of its own.
    paragraph[1:] |= newline[1:] & newline[:-1] & ((seen[1:] & BLANK) > 0)
    sentence = (seen & FULL_STOP) > 0
    sentence[:-1] |= ((seen[:-1] & STOP) > 0) & ((seen[1:] & SPACED) > 0)
    return np.maximum.reduce([paragraph * np.uint8(BREAK), newline * np.uint8(LINE), sentence * np.uint8(SENTENCE)])
