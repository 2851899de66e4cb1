"""From the data settings of a preference job to its material: pairs or judged answers, fixed sets, prompts, questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, DataError
from mlxforge.core.events import Emit, Noted, Warned
from mlxforge.core.files import cache_dir
from mlxforge.core.settings import KtoConfig, PreferenceSettings, TrainSettings
from mlxforge.data.batch import Rows
from mlxforge.data.masks import ChatEncoder
from mlxforge.data.mix import Mixture
from mlxforge.data.pair_encoder import PairEncoder
from mlxforge.data.pairs import THOUGHTS, prepare_answers, prepare_pairs
from mlxforge.data.selftest import self_test
from mlxforge.data.sources import parse_spec
from mlxforge.data.tokens import split_by_hash
from mlxforge.runs.chats import asked, asked_first, questions_of
from mlxforge.runs.material import Base, Material, Question
from mlxforge.runs.text import check_data, expand, make_encoder, retained
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
    from mlxforge.models.template import load_template

    template = load_template(base.path, base.detected, saved=base.run)
    folder = cache or cache_dir() / "tokens"
    encoder = PairEncoder(template, max_length=settings.max_length, overlong=settings.overlong)
    text = make_encoder(base.tokenizer, base.path, base.fast)
    judged = isinstance(settings, KtoConfig)
    prepared: Callable[..., Any] = prepare_answers if judged else prepare_pairs

    def pairs(specs: list[str]) -> Any:
        return prepared(
            [parse_spec(expand(spec)) for spec in specs], encoder, cache=folder, vocabulary=text.vocabulary,
            format=settings.format, mapping=settings.map, skip_bad=settings.skip_bad, emit=emit,
        )  # fmt: skip

    whole = pairs(settings.data)
    train, valid = _held_out(whole, pairs([settings.valid]) if settings.valid else None, settings, emit)
    if not len(train):
        raise DataError("no pair is left to train on", where="data", fix="give more rows, or another valid set")
    if judged and len(set(train.desirable.tolist())) == 1:
        kind = "wanted" if train.desirable[0] else "unwanted"
        emit(Warned(message=f"all answers are {kind}: kto compares wanted with unwanted ones"))
    examples = [chat for rows in (whole, valid) if rows is not None for chat in rows.examples]
    self_test(ChatEncoder(template, max_length=settings.max_length), examples)
    sets = {"train": _set(train, settings)} | ({"valid": _set(valid, settings)} if valid is not None else {})
    fixed: dict[str, tuple[Rows, int]] = {"valid": (sets["valid"], 0)} if valid is not None else {}
    hashes = {"train": train.hash, **({"valid": valid.hash} if valid is not None else {})}
    if kept := retained(settings, text, folder, emit):
        fixed["retention"] = (kept, int(kept.tokens.bytes.sum()))
        hashes["retention"] = kept.tokens.hash
    thinking = 2 * whole.counts.get(THOUGHTS, 0) > whole.counts["rows"]
    questions = questions_of(settings, template, base, thinking, emit)
    return Material(
        mixture=Mixture(sets["train"], train.weights),
        fixed=fixed,
        tokenizer=encoder.key,
        hashes=hashes,
        plan=_plan(train, valid, judged),
        prompts=_prompts(settings, template, thinking, valid if valid is not None else train, base.tokenizer),
        stop=template.stop,
        questions=questions,
        save=template.save,
        pairs=sets,
    )


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


def _held_out(whole: Any, valid: Any, settings: PreferenceSettings, emit: Emit) -> tuple[Any, Any]:
    if valid is not None:
        kept = whole.without(valid)
        if len(kept) < len(whole):
            emit(Noted(message=f"{len(whole) - len(kept)} training rows left out: their prompts are in the validation set"))
        return kept, valid
    if settings.valid_split == 0:
        return whole, None
    kept, held = split_by_hash(whole, settings.valid_split)
    if not len(held):
        emit(Warned(message="one prompt alone: nothing is held out, so there is no validation (give --valid)"))
        return whole, None
    return kept, held


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
