"""The reference's log-probabilities: taken once before training, kept on disk by what decides them, never a second model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlxforge.core.errors import ConfigError
from mlxforge.core.events import Emit
from mlxforge.core.files import bytes_hash, cache_dir, disk_errors, file_hash
from mlxforge.core.settings import TrainSettings
from mlxforge.models.adapters import ADAPTER_CONFIG, adapter_file
from mlxforge.runs.opening import resolve_base
from mlxforge.training.pairs import Layout, PairSet, collate_pairs, take_reference
from mlxforge.training.streams import FixedBatches, Make

VERSION = 1  # raise it when the sums change
SHARE_WORTH = 0.1  # of a pair's tokens: below, sharing a prompt gains less than its masks cost


def arrange(settings: TrainSettings, scorer: Any, sets: Mapping[str, PairSet], packable: bool) -> Make:
    """How the pairs of a run stand in its batches: what makes a batch of a plan.

    Raises:
        ConfigError: share_prompt is on for a model whose layers cannot share a prompt.
    """
    layout = _layout(settings, scorer, sets["train"], packable)
    for found in sets.values():
        found.shared = layout == "shared"
    return partial(collate_pairs, layout=layout, capacity=settings.max_length)


def _layout(settings: TrainSettings, scorer: Any, train: PairSet, packable: bool) -> Layout:
    wanted = getattr(settings, "share_prompt", "auto")
    if settings.batching == "packed" and packable:
        return "packed"
    if wanted == "off" or settings.grad_checkpoint:
        return "single"
    prompts = float(np.sum(train.rows.prompts))
    if wanted == "auto" and prompts < SHARE_WORTH * (float(np.sum(train.rows.lengths)) + prompts):
        return "single"
    if scorer.shares:
        return "shared"
    if wanted == "on":
        raise ConfigError("this model's layers cannot share a prompt", where="share_prompt", fix="use auto or off")
    return "single"


def fill_reference(
    sets: Mapping[str, PairSet], scorer: Any, make: Make, settings: TrainSettings, model: Sequence[str], emit: Emit
) -> None:
    """Fills every set's reference: from the cache, or with the model as it is now.

    Args:
        model: what decides the model's numbers, see :func:`numbers_of`.
    """
    folder = cache_dir() / "reference"
    for found in sets.values():
        file = folder / f"{bytes_hash(str(VERSION), *model, found.rows_hash, str(settings.max_length))[:32]}.npy"
        kept = _load(file, found.reference.shape)
        if kept is not None:
            found.reference[:] = kept
            continue
        batches = FixedBatches(found, settings, "bucketed", make)
        take_reference(scorer, zip((plan.rows for plan in batches.plans), batches, strict=True), found, emit)
        _save(file, found.reference)


def _load(file: Path, shape: tuple[int, ...]) -> Any:
    try:
        kept = np.load(file)
    except (OSError, ValueError):
        return None
    return kept if kept.shape == shape else None


def _save(file: Path, reference: Any) -> None:
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.npy")
        try:
            np.save(temporary, reference)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def numbers_of(path: Path, adapters: Sequence[Path | None], dtype: str) -> list[str]:
    """What decides the numbers of a model with the adapters that it has, each with its scale."""
    from mlxforge.models.check import model_hash, written_at

    files = [file for folder in adapters if folder for file in (adapter_file(folder), folder / ADAPTER_CONFIG)]
    return [model_hash(path), *filter(None, [written_at(path)]), *map(file_hash, files), dtype]


def other_reference(settings: TrainSettings, sets: Mapping[str, PairSet], tokenizer: Any, emit: Emit, *, take: bool) -> None:
    """Takes the reference of another model, which is let go before the policy is loaded; or, for a plan, only looks at it.

    Raises:
        ConfigError: its tokenizer is not the policy's.
    """
    import mlx.core as mx

    from mlxforge.models.load import fast_tokenizer, load, resolve_model
    from mlxforge.models.lora import apply_adapter
    from mlxforge.models.scoring import Scorer

    name: str = settings.reference  # type: ignore[attr-defined]
    base = resolve_base(name, Path(settings.runs_dir))
    path = resolve_model(base.model)
    theirs = fast_tokenizer(path)
    if theirs is None or theirs.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(f"{name} has another vocabulary", where="reference", fix="name a model with the same tokenizer")
    if not take:
        return
    loaded = load(base.model, settings.dtype)
    if base.adapter is not None:
        apply_adapter(loaded.model, base.adapter)
    scorer = Scorer(loaded.model)
    make = arrange(settings, scorer, sets, loaded.detected.packable)
    fill_reference(sets, scorer, make, settings, numbers_of(path, [base.adapter], loaded.dtype), emit)
    del loaded, scorer
    mx.clear_cache()
