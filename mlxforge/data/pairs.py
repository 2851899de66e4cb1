"""Preference pairs and judged answers as tokens and masks on disk: prompt, then the answers, mapped into memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from mlxforge.core.events import Emit, ignore
from mlxforge.core.rows import Chat, Kto, Messages, Preference, Tools
from mlxforge.data.pair_encoder import AnswerRow, PairEncoder, PairRow
from mlxforge.data.sources import Source
from mlxforge.data.stored import (
    COLUMNS,
    DUPLICATES,
    SKIPPED,
    THOUGHTS,
    TRAINED,
    Ints,
    Making,
    RowOptions,
    Stored,
    Writer,
    digest,
    numbers,
    stored,
)

__all__ = [
    "THOUGHTS",
    "AnswerRow",
    "AnswerRows",
    "PairEncoder",
    "PairRow",
    "PairRows",
    "RowOptions",
    "prepare_answers",
    "prepare_pairs",
]

VERSION = 1  # raise it when the files change


@dataclass(frozen=True, eq=False, kw_only=True)
class _Prompted(Stored):
    """N rows that begin with a prompt; ``groups`` (N, 16) hashes it with its tools. ``prompts`` (N,) counts its tokens."""

    prompts: Ints
    groups: npt.NDArray[np.uint8]

    @property
    def keys(self) -> npt.NDArray[np.uint64]:
        """(N,) a number of the prompt: rows of one prompt are held out together, so that none of them is trained."""
        return numbers(self.groups)

    @property
    def lengths(self) -> Ints:
        """(N,) tokens of the prompt and of all answers."""
        return self.stops - self.starts


@dataclass(frozen=True, eq=False, kw_only=True)
class PairRows(_Prompted):
    """N pairs. ``prompts``, ``chosen`` and ``rejected`` (N,) count tokens; ``trained`` those of both answers that are targets;
    ``bytes`` is the UTF-8 length of the chosen answer's text."""

    chosen: Ints
    rejected: Ints

    by_row: ClassVar[tuple[str, ...]] = (*Stored.by_row, "prompts", "groups", "chosen", "rejected")

    def __getitem__(self, index: int) -> PairRow:
        start, stop = int(self.starts[index]), int(self.stops[index])
        middle = start + int(self.prompts[index])
        end = middle + int(self.chosen[index])
        chosen, rejected = slice(middle, end), slice(end, stop)
        masks = (self.flags[chosen] == TRAINED, self.flags[rejected] == TRAINED)
        return PairRow(self.tokens[start:middle], self.tokens[chosen], masks[0], self.tokens[rejected], masks[1])


@dataclass(frozen=True, eq=False, kw_only=True)
class AnswerRows(_Prompted):
    """N judged answers. ``prompts`` and ``answers`` (N,) count tokens; ``desirable`` (N,) is True where an answer is wanted;
    ``bytes`` is the UTF-8 length of the answer's text."""

    desirable: npt.NDArray[np.bool_]

    by_row: ClassVar[tuple[str, ...]] = (*Stored.by_row, "prompts", "groups", "desirable")

    @property
    def answers(self) -> Ints:
        """(N,) tokens of each answer."""
        return self.lengths - self.prompts

    def __getitem__(self, index: int) -> AnswerRow:
        start, stop = int(self.starts[index]), int(self.stops[index])
        answer = slice(start + int(self.prompts[index]), stop)
        desirable = bool(self.desirable[index])
        return AnswerRow(self.tokens[start : answer.start], self.tokens[answer], self.flags[answer] == TRAINED, desirable)


def messages(noun: str) -> dict[str, str]:
    """What is counted -> how it is told."""
    return {
        "rows": "",
        THOUGHTS: f"{noun}s with thoughts, which are trained",
        SKIPPED: "bad rows skipped",
        DUPLICATES: f"{noun}s that occur more than once (all are trained; 'mlxforge data dedup' leaves them out)",
        "shortened": f"{noun}s over max_length, the oldest exchanges of their prompts left out",
        "cut_left": f"{noun}s over max_length, the beginning of their prompts cut off",
        "dropped": f"{noun}s over max_length, dropped",
        "folded_system": "system messages put into the first user turn, since the template has no such role",
        "history": f"{noun}s of several turns, the earlier ones trained as the template writes history",
    }


def prepare_pairs(
    sources: Iterable[Source],
    encoder: PairEncoder,
    options: RowOptions,
    emit: Emit = ignore,
) -> PairRows:
    """The sources' preference rows as pairs, from the cache where it holds them. Judged and scored answers become pairs too.

    Raises:
        DataError: the first 20 bad rows, or no pair at all.
    """
    columns = {**COLUMNS, "prompts": np.int64, "groups": np.uint8, "chosen": np.int64, "rejected": np.int64}
    making = Making("preference", "pair", VERSION, messages("pair"), encoder.pair, _add_pair, columns)
    return PairRows(**stored(making, sources, encoder, options, emit))


def prepare_answers(
    sources: Iterable[Source],
    encoder: PairEncoder,
    options: RowOptions,
    emit: Emit = ignore,
) -> AnswerRows:
    """The sources' KTO rows, from the cache where it holds them; preference rows are taken apart. Otherwise as
    :func:`prepare_pairs`."""
    columns = {**COLUMNS, "prompts": np.int64, "groups": np.uint8, "desirable": np.bool_}
    making = Making("kto", "answer", VERSION, messages("answer"), encoder.answer, _add_answer, columns)
    return AnswerRows(**stored(making, sources, encoder, options, emit))


def _add_pair(writer: Writer, row: Preference, pair: PairRow | None, source: int) -> None:
    if pair is None:
        return
    ids, masks = (pair.prompt, pair.chosen, pair.rejected), (pair.chosen_mask, pair.rejected_mask)
    sizes = {"prompts": len(pair.prompt), "chosen": len(pair.chosen), "rejected": len(pair.rejected)}
    _add(writer, row, ids, masks, source, (row.chosen, row.rejected), **sizes)


def _add_answer(writer: Writer, row: Kto, answer: AnswerRow | None, source: int) -> None:
    if answer is None:
        return
    values = {"prompts": len(answer.prompt), "desirable": answer.desirable}
    _add(writer, row, (answer.prompt, answer.answer), (answer.mask,), source, (row.completion,), **values)


def _add(
    writer: Writer,
    row: Preference | Kto,
    ids: tuple[npt.NDArray[Any], ...],
    masks: tuple[npt.NDArray[np.bool_], ...],
    source: int,
    answers: tuple[Messages, ...],
    **values: int,
) -> None:
    """One row: the prompt and what follows it; the first of ``answers`` is the one whose text is measured."""
    mask = np.concatenate((np.zeros(len(ids[0]), np.bool_), *masks))
    said = sum(len((m.content + m.reasoning).encode()) for m in answers[0] if m.role == "assistant" and m.train)
    shared = {"trained": int(mask.sum()), "bytes": said, "source": source}
    digests = {"digests": writer.digest(row), "groups": digest((row.prompt, row.tools))}
    writer.append(np.concatenate(ids), mask, **shared, **digests, **values)
    writer.counts[THOUGHTS] += any(message.reasoning for answer in answers for message in answer)
    for answer in answers:
        writer.keep(conversation(row.prompt, answer, row.tools))


def conversation(prompt: Messages, answer: Messages, tools: Tools = ()) -> Chat:
    """A prompt and an answer as a conversation that trains the answer alone."""
    asked = tuple(msgspec.structs.replace(m, train=False) if m.role == "assistant" else m for m in prompt)
    return Chat((*asked, *answer), tools)
