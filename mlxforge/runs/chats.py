"""From the data settings of a chat job to its material: rows with masks, fixed sets, prompts, and questions to be answered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mlxforge.core.errors import ConfigError, DataError
from mlxforge.core.events import Emit
from mlxforge.core.settings import SftConfig, TrainSettings
from mlxforge.data.chats import ChatRows, RowOptions, prepare_chats
from mlxforge.data.masks import ChatEncoder
from mlxforge.data.mix import Mixture
from mlxforge.data.selftest import self_test
from mlxforge.runs.material import Base, Material, Question
from mlxforge.runs.parts import hashes_of, held_out, measured
from mlxforge.runs.rendered import asked, asked_first, questions_of, rendering, sources_of, thoughts_of
from mlxforge.runs.text import check_data, replayed, retained, text_replay


class _Sets(NamedTuple):
    """The conversations of a job; ``whole`` is all that ``data`` names."""

    whole: ChatRows
    train: ChatRows
    valid: ChatRows | None
    replay: ChatRows | None


def read(settings: TrainSettings, base: Base, emit: Emit, cache: Path | None = None) -> Material:
    """Reads, renders, masks and tokenises everything that the settings name, and tests the template on it.

    Raises:
        ConfigError: no data named, or a replay without its ratio or the other way round.
        DataError: bad rows, see :func:`mlxforge.data.chats.prepare_chats`.
        ModelError: the template is missing or fails its self-test.
    """
    assert isinstance(settings, SftConfig)
    check_data(settings)
    _check_replay(settings)
    with_what = rendering(settings, base, cache)
    template, folder = with_what.template, with_what.options.cache
    encoder = ChatEncoder(template, train_on=settings.train_on, max_length=settings.max_length, overlong=settings.overlong)
    whole, train, valid, chat_replay = _sets(settings, encoder, with_what.options, emit)
    self_test(encoder, [chat for rows in (whole, valid, chat_replay) if rows is not None for chat in rows.examples])
    replay = text_replay(settings, with_what.text, folder, emit)
    retention = retained(settings, with_what.text, folder, emit)
    thinking, saved = thoughts_of(template, whole.counts)
    questions = questions_of(settings, template, base, thinking, emit)
    replays = ((replay, settings.replay_ratio), (chat_replay, settings.chat_replay_ratio))
    return Material(
        mixture=Mixture(train, train.weights, tuple((rows, ratio) for rows, ratio in replays if rows)),
        fixed=measured(valid=valid, retention=retention),
        tokenizer=encoder.key,
        hashes=hashes_of(train=train, valid=valid, retention=retention, replay=replay, chat_replay=chat_replay),
        plan=_plan(train, valid),
        prompts=_prompts(settings, template, thinking, train if valid is None else valid, base.tokenizer, questions),
        stop=template.stop,
        questions=questions,
        save=saved.save,
    )


def _sets(settings: SftConfig, encoder: ChatEncoder, options: RowOptions, emit: Emit) -> _Sets:
    whole = prepare_chats(sources_of(*settings.data), encoder, options, emit)
    given = prepare_chats(sources_of(settings.valid), encoder, options, emit) if settings.valid else None
    train, valid = held_out(
        whole, given, settings.valid_split, emit,
        alone="conversation", left_out="conversations left out: they are", size=lambda rows: rows.conversations,
    )  # fmt: skip
    if not len(train):
        raise DataError("no conversation is left to train on", where="data", fix="give more rows, or another valid set")
    if not settings.chat_replay:
        return _Sets(whole, train, valid, None)
    # Format and mapping are those of the job's own rows.
    general = replace(options, format=None, mapping={})
    return _Sets(whole, train, valid, prepare_chats(replayed(settings.chat_replay, "chat_replay"), encoder, general, emit))


def _plan(train: ChatRows, valid: ChatRows | None) -> dict[str, Any]:
    return {
        "conversations": train.conversations,
        "valid_conversations": valid.conversations if valid is not None else 0,
        "rows": len(train),
        "tokens": int(train.lengths.sum()),
        "trained_tokens": int(train.trained.sum()),
    }


def _prompts(
    settings: SftConfig, template: Any, thinking: bool, rows: ChatRows, tokenizer: Any, questions: list[Question]
) -> list[Question]:
    """The settings' own texts, else the first question of the task, else that of the held-out rows."""
    if settings.sample_tokens == 0:
        return []
    if own := asked(settings, template, thinking) or questions[:1]:
        return own
    return asked_first(template, rows, thinking) if settings.valid else _first_prompts(rows, tokenizer)


def _check_replay(settings: SftConfig) -> None:
    if bool(settings.chat_replay) != (settings.chat_replay_ratio > 0):
        what = "chat_replay and chat_replay_ratio go together"
        raise ConfigError(what, where="chat_replay", fix="give both, such as chat_replay_ratio=0.1")
    if settings.replay_ratio + settings.chat_replay_ratio >= 1:
        what = f"{settings.replay_ratio} and {settings.chat_replay_ratio} leave no share for the data itself"
        raise ConfigError(what, where="replay_ratio, chat_replay_ratio", fix="let them sum to less than 1")


def _first_prompts(rows: ChatRows, tokenizer: Any) -> list[Question]:
    """What comes before the first trained token of the first row: just what inference would render."""
    row = rows[0]
    assert row.mask is not None
    ids = [int(token) for token in row.tokens[: 1 + int(row.mask.argmax())]]
    return [Question(ids, tokenizer.decode(ids, skip_special_tokens=True).strip())]
