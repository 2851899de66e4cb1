"""Conversations as tokens and masks on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mlxforge.core.events import Emit, ignore
from mlxforge.core.rows import Chat
from mlxforge.data.batch import Row
from mlxforge.data.sources import Source
from mlxforge.data.stored import DUPLICATES, SKIPPED, THOUGHTS, TRAINED, Ints, Making, RowOptions, Stored, Writer, stored

__all__ = ["MESSAGES", "THOUGHTS", "ChatRows", "Encoder", "RowOptions", "prepare_chats"]

VERSION = 2  # raise it when the files or the reading of rows change


class Encoder(Protocol):
    """What makes rows of a conversation: see :class:`mlxforge.data.masks.ChatEncoder`."""

    counts: Counter[str]

    @property
    def key(self) -> str: ...
    def encode(self, chat: Chat) -> Sequence[Any]: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class ChatRows(Stored):
    """R rows, of which several may come from one conversation; ``digests`` and ``keys`` are those of the conversation.

    ``bytes`` is the UTF-8 length of the assistants' text of a conversation, at its first row.
    """

    def __getitem__(self, index: int) -> Row:
        start, stop = self.starts[index], self.stops[index]
        return Row(self.tokens[start:stop], self.flags[start + 1 : stop] == TRAINED)

    @property
    def lengths(self) -> Ints:
        """(R,) inputs of each row."""
        return self.stops - self.starts - 1

    @property
    def conversations(self) -> int:
        """Different conversations."""
        return len(np.unique(self.keys))


# What is counted -> how it is told; "" for what needs no word. What a format leaves out is told in its own words.
MESSAGES = {
    "rows": "",
    THOUGHTS: "conversations with thoughts, which are trained",
    SKIPPED: "bad rows skipped",
    DUPLICATES: "conversations that occur more than once (all are trained; 'mlxforge data dedup' leaves them out)",
    "split": "conversations over max_length, split by turn",
    "dropped": "conversations over max_length, dropped",
    "cut_left": "conversations over max_length, their beginning cut off",
    "folded_system": "system messages put into the first user turn, since the template has no such role",
    "apart": "turns in rows of their own, since the template writes history otherwise than answers",
}


def prepare_chats(
    sources: Iterable[Source],
    encoder: Encoder,
    options: RowOptions,
    emit: Emit = ignore,
) -> ChatRows:
    """The sources' conversations as rows, from the cache where it holds them.

    Raises:
        DataError: the first 20 bad rows, or no conversation at all.
    """
    making = Making("chat", "conversation", VERSION, MESSAGES, encoder.encode, _add)
    return ChatRows(**stored(making, sources, encoder, options, emit))


def _add(writer: Writer, chat: Chat, rows: Sequence[Any], source: int) -> None:
    """The rows of one conversation."""
    digest = writer.digest(chat)
    size = sum(len((m.content + m.reasoning).encode()) for m in chat.messages if m.role == "assistant" and m.train)
    for number, (ids, mask) in enumerate(rows):
        values = {"trained": sum(mask[1:]), "bytes": 0 if number else max(size, 1), "source": source, "digests": digest}
        writer.append(ids, mask, **values)
    writer.counts[THOUGHTS] += any(message.reasoning for message in chat.messages)
    writer.keep(chat)
