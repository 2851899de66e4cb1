"""Decoding held to a JSON schema: at every step only tokens that lead on to a valid answer, at the end only those that end it.

The package ``llguidance`` knows which tokens may come next. It knows nothing of lengths: so that an answer is whole within its
tokens, what ends it soonest is chosen once the tokens left are only enough for that.
"""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlxforge.core.errors import ConfigError, MissingExtraError
from mlxforge.knowledge.schemas import Schema, enough

Bits = npt.NDArray[np.bool_]

# As Python writes JSON: models have read most of it in this form. White space that is free would let a model write it for ever.
FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
PLAIN = "abcdefghijklmnopqrstuvwxyz"


class Constrainer:
    """Makes logits processors for one tokenizer.

    Args:
        tokenizer: the text of a tokenizer.json.
        rows: width of the logits.
        stop: ids that end an answer.

    Raises:
        MissingExtraError: no package ``llguidance``.
    """

    def __init__(self, tokenizer: str, rows: int, stop: list[int]) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise MissingExtraError("llguidance", "synth", "an answer in a schema from a local model") from error
        self.library, self.rows, self.stop = llguidance, rows, stop
        self.tokenizer = llguidance.LLTokenizer(tokenizer, n_vocab=rows, eos_token=stop)
        self._grammar = lru_cache(maxsize=64)(self._compiled)

    def __call__(self, schema: Schema, max_tokens: int) -> Constraint:
        """A processor for one answer.

        Raises:
            ConfigError: a schema of other keywords, or one that may not be met within ``max_tokens``.
        """
        needed = enough(schema) + 1
        if max_tokens <= needed:
            raise ConfigError(f"{max_tokens} tokens may not hold an answer", where="max tokens", fix=f"at least {needed + 1}")
        return Constraint(self, self._grammar(json.dumps(schema)).deep_copy(), max_tokens, needed)

    def _compiled(self, schema: str) -> Any:
        grammar = self.library.LLMatcher.grammar_from_json_schema(schema, overrides=FORM)
        matcher = self.library.LLMatcher(self.tokenizer, grammar)
        if matcher.is_error():
            raise ConfigError(f"not a schema to decode in: {matcher.get_error()}", where=schema[:80])
        return matcher

    def bytes_of(self, token: int) -> bytes:
        """What a token writes."""
        return bytes(self.tokenizer.decode_bytes([token]))

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """The bytes of every token."""
        return np.array([len(self.bytes_of(token)) for token in range(self.rows)])

    @cached_property
    def closers(self) -> dict[bool, tuple[Bits, ...]]:
        """By whether a string is open: the tokens of one letter that end the answer soonest, those to take first in front."""
        single = {self.bytes_of(token): token for token in np.flatnonzero(self.sizes == 1).tolist()}

        def marks(letters: str) -> Bits:
            found = np.zeros(self.rows, np.bool_)
            found[[single[letter.encode()] for letter in letters if letter.encode() in single]] = True
            return found

        return {True: (marks('"'), marks(PLAIN)), False: (marks("]}"), marks(","))}


class Constraint:
    """A logits processor as mlx-lm takes them: (tokens so far, logits (1, V)) -> logits.

    ``done`` tells that the answer is whole.
    """

    def __init__(self, maker: Constrainer, matcher: Any, room: int, needed: int) -> None:
        self.maker, self.matcher, self.left, self.needed = maker, matcher, room, needed
        self.written = bytearray()
        self.begun = self.inside = self.escaped = False

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self.begun:
            self._take(int(tokens[-1].item()))
        self.begun = True
        allowed = mx.array(self._allowed()[: logits.shape[-1]])
        self.left -= 1
        return mx.where(allowed, logits, mx.array(-mx.inf, logits.dtype))

    @property
    def done(self) -> bool:
        """Whether what is written fits the schema as it stands."""
        return bool(self.matcher.is_accepting()) and not self.matcher.is_error()

    @property
    def text(self) -> str:
        """What is written so far."""
        return self.written.decode("utf-8", "replace")

    def _take(self, token: int) -> None:
        if self.matcher.is_stopped() or token in self.maker.stop:
            return
        self.matcher.consume_token(token)
        part = self.maker.bytes_of(token)
        self.written += part
        for byte in part:
            if self.escaped:
                self.escaped = False
            elif byte == ord('"'):
                self.inside = not self.inside
            else:
                self.escaped = self.inside and byte == ord("\\")

    def _allowed(self) -> Bits:
        allowed = np.zeros(self.maker.rows, np.bool_)
        if self.matcher.is_stopped():
            allowed[self.maker.stop] = True
            return allowed
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed[:] = bits[: self.maker.rows].astype(np.bool_)
        return self._ending(allowed) if self.left <= self.needed else allowed

    def _ending(self, allowed: Bits) -> Bits:
        """Of the allowed tokens those that end the answer soonest."""
        for closing in self.maker.closers[self.inside]:
            if (soonest := allowed & closing).any():
                return soonest
        return allowed & (self.maker.sizes == self.maker.sizes[allowed].min())
