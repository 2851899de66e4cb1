"""From the data settings of a preference job to its material: pairs or judged answers, fixed sets, prompts, questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, DataError
from mlxforge.core.events import Emit, Warned
from mlxforge.core.settings import KtoConfig, PreferenceSettings, TrainSettings
from mlxforge.data.masks import ChatEncoder
from mlxforge.data.mix import Mixture
from mlxforge.data.pairs import PairEncoder, RowOptions, prepare_answers, prepare_pairs
from mlxforge.data.selftest import self_test
from mlxforge.runs.material import Base, Material, Question
from mlxforge.runs.parts import hashes_of, held_out, measured
from mlxforge.runs.rendered import asked, asked_first, questions_of, rendering, sources_of, thoughts_of
from mlxforge.runs.text import check_data, retained
from mlxforge.training.pairs import Mismatched, PairSet


def read(settings: TrainSettings, base: Base, emit: Emit, cache: Path | None = None) -> Material:
    """Reads, renders and tokenises the pairs (or judged answers, for kto), and tests the template on them.

    Raises:
        ConfigError: no data named, or a setting that has no effect with the chosen loss.
        DataError: bad rows, see :func:`mlxforge.data.pairs.prepare_pairs`.
        ModelError: the template is missing or fails its self-test.
    """
    assert isinstance(settings, PreferenceSettings)
    check_data(settings)
    _check_settings(settings)
    with_what = rendering(settings, base, cache)
    template, judged = with_what.template, isinstance(settings, KtoConfig)
    encoder = PairEncoder(template, max_length=settings.max_length, overlong=settings.overlong)
    whole, train, valid = _rows(settings, encoder, with_what.options, emit)
    examples = [chat for rows in (whole, valid) if rows is not None for chat in rows.examples]
    self_test(ChatEncoder(template, max_length=settings.max_length), examples)
    sets = {name: _set(rows, settings) for name, rows in (("train", train), ("valid", valid)) if rows is not None}
    retention = retained(settings, with_what.text, with_what.options.cache, emit)
    thinking, saved = thoughts_of(template, whole.counts)
    return Material(
        mixture=Mixture(sets["train"], train.weights),
        # A pair is no text: its set has no bytes.
        fixed={name: (rows, 0) for name, rows in sets.items() if name == "valid"} | measured(retention=retention),
        tokenizer=encoder.key,
        hashes=hashes_of(train=train, valid=valid, retention=retention),
        plan=_plan(train, valid, judged),
        prompts=_prompts(settings, template, thinking, train if valid is None else valid, base.tokenizer),
        stop=template.stop,
        questions=questions_of(settings, template, base, thinking, emit),
        save=saved.save,
        pairs=sets,
    )


def _rows(settings: PreferenceSettings, encoder: PairEncoder, options: RowOptions, emit: Emit) -> tuple[Any, Any, Any]:
    """All rows that ``data`` names, those to train on, and those to validate on or None."""
    judged = isinstance(settings, KtoConfig)
    prepare: Callable[..., Any] = prepare_answers if judged else prepare_pairs
    whole = prepare(sources_of(*settings.data), encoder, options, emit)
    given = prepare(sources_of(settings.valid), encoder, options, emit) if settings.valid else None
    train, valid = held_out(
        whole, given, settings.valid_split, emit, alone="prompt", left_out="rows left out: their prompts are"
    )
    if not len(train):
        raise DataError("no pair is left to train on", where="data", fix="give more rows, or another valid set")
    if judged and len(set(train.desirable.tolist())) == 1:
        kind = "wanted" if train.desirable[0] else "unwanted"
        emit(Warned(message=f"all answers are {kind}: kto compares wanted with unwanted ones"))
    return whole, train, valid


def _check_settings(settings: PreferenceSettings) -> None:
    from mlxforge.training.preference import unused

    for name in unused(settings):
        loss = getattr(settings, "loss", "")
        raise ConfigError(f"has no effect with loss {loss}", where=name, fix=f"leave {name} out, or choose another loss")
    sharing = getattr(settings, "share_prompt", "auto")
    for other, clashes in (("batching packed", settings.batching == "packed"), ("grad_checkpoint", settings.grad_checkpoint)):
        if sharing == "on" and clashes:
            raise ConfigError(f"share_prompt on and {other} do not go together", where="share_prompt", fix="use auto or off")


def _set(rows: Any, settings: PreferenceSettings) -> PairSet:
    return PairSet(Mismatched(rows, settings.max_length) if isinstance(settings, KtoConfig) else rows, shared=False)


def _plan(train: Any, valid: Any, judged: bool) -> dict[str, Any]:
    noun = "answers" if judged else "pairs"
    whole = int(train.lengths.sum())
    return {
        noun: len(train),
        f"valid_{noun}": len(valid) if valid is not None else 0,
        "tokens": whole,
        "trained_tokens": int(train.trained.sum()),
        "prompt_share": round(float(train.prompts.sum()) / max(whole, 1), 4),
    }


def _prompts(settings: PreferenceSettings, template: Any, thinking: bool, rows: Any, tokenizer: Any) -> list[Question]:
    """The settings' own texts, else the prompt of the first held-out row."""
    if settings.sample_tokens == 0:
        return []
    if own := asked(settings, template, thinking) or (asked_first(template, rows, thinking) if settings.valid else []):
        return own
    ids = [int(token) for token in rows[0].prompt]
    return [Question(ids, tokenizer.decode(ids, skip_special_tokens=True).strip())]
