"""The plan of a run before it starts: rows, tokens, steps, and what memory and time it will take. Nothing is written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.blas import load_blas
from mlxforge.core.events import Emit, fan_out
from mlxforge.core.settings import TrainSettings
from mlxforge.models.shapes import Shapes, shapes_of, skeleton
from mlxforge.runs.fit import fit
from mlxforge.runs.forecast import Batch, Forecast, Work, forecast, peak, speed_for
from mlxforge.runs.train import adapted, batching, plan_of, prepare, read_material, settled


@dataclass(frozen=True)
class Outline:
    """A job as far as its data and its model's shapes tell. ``rows``: the lengths of the rows to train on."""

    config: TrainSettings
    model: Shapes
    work: Work
    plan: dict[str, Any]
    rows: Any


def plan(
    config: TrainSettings, listeners: Sequence[Emit] = (), *, probe: bool = False, memory: int | None = None
) -> dict[str, Any]:
    """What a run would do and need.

    Args:
        probe: measure memory and time in two updates on this machine, instead of counting them.
        memory: bytes that the run may take: settings are changed so that it fits, with least slowdown.

    Returns:
        The figures of the data; ``memory``: bytes by part, and ``total``; ``seconds``; ``source`` of both, a key of SOURCES;
        where ``memory`` is given ``fit``: what to change, and all figures are with these changes.

    Raises:
        ConfigError: no settings fit into ``memory``.
    """
    emit, config = fan_out(listeners), settled(config)
    with tempfile.TemporaryDirectory(prefix="mlxforge-") as cache:
        found = outline(config, emit, Path(cache))
        said, source, chosen = predicted(found), "forecast", None
        measured = probed(config, found.model, emit, Path(cache), said) if probe else None
        factor = measured.passing / max(said.passing, 1) if measured else None
        if memory is not None:
            chosen = fit(config, found.model, found.work, memory, factor, found.rows)
        if chosen is not None and chosen.changes:
            found = outline(msgspec.structs.replace(config, **chosen.changes), emit, Path(cache))
            said = predicted(found).corrected(factor or 1.0)
            if measured and measured.seconds is not None:
                said, source = replace(said, seconds=chosen.slowdown * measured.seconds), "corrected"
        elif measured:
            said, source = measured, "probe"
    figures = {"memory": said.parts | {"total": said.total}, "seconds": round(said.seconds or 0.0, 1), "source": source}
    return found.plan | figures | ({"fit": chosen.told()} if chosen is not None else {})


# Where memory and seconds of a plan are from.
SOURCES = {
    "forecast": "a forecast; --probe measures",
    "probe": "measured here, in two updates",
    "corrected": "a forecast, corrected by two updates",
}


def predicted(found: Outline) -> Forecast:
    """The forecast of a job, with the time at this machine's own speed."""
    return forecast(found.config, found.work, model=found.model, speed=speed_for(found.model))


def outline(config: TrainSettings, emit: Emit, cache: Path) -> Outline:
    """Reads the data and the model's configuration; no weights are read, and of a hub model none are fetched.

    Raises:
        MlxforgeError: as training would, as far as it can be told without weights.
    """
    load_blas()  # before anything here imports MLX
    from mlxforge.models.detect import read_config
    from mlxforge.models.hub import DESCRIPTION, is_folder
    from mlxforge.runs.opening import resolve_base
    from mlxforge.runs.train import start_adapter
    from mlxforge.training.streams import FixedBatches, RowStream

    here = (name := resolve_base(config.model, Path(config.runs_dir)).model) == "tiny" or is_folder(name)
    given, base, material = read_material(config, emit, cache, None if here else DESCRIPTION)
    description = read_config(base.path)
    model = skeleton(description, str(base.path / "config.json"))
    adapted(model, config, given.model, given, start_adapter(config), emit)
    shape = shapes_of(model, description, config.lora, config.dtype)
    mode, make = batching(config, _Sharing(base.detected.packable), material, base.detected.packable)
    stream = RowStream(material.mixture, config, mode, make)
    largest = _largest(stream.plan(0), partial(make, material.mixture.rows))
    scored: list[Any] = []
    looked_at: list[Batch] = []
    for name, (rows, _) in material.fixed.items():
        batches = FixedBatches(rows, config, mode, *([make] if rows is material.pairs.get(name) else []))
        scored += batches.plans
        looked_at += _largest(batches.plans, partial(batches.make, rows))
    plans = stream.plan(0)
    steps = -(-len(stream) // config.accumulate)
    evaluations = len(range(0, steps, config.eval_every or max(1, steps // 10))) + 1
    work = Work(
        largest=largest,
        slots=len(stream) * sum(one.slots for one in plans) / len(plans),
        evaluated=tuple(looked_at),
        evaluation_slots=evaluations * sum(one.slots for one in scored),
        reference=sum(pairs.reference.nbytes for pairs in material.pairs.values()),
    )
    lengths = material.mixture.rows.lengths
    return Outline(config, shape, work, plan_of(config, material, stream, mode, model), lengths)


@dataclass(frozen=True)
class _Sharing:
    """Whether a model shares prompts, as its family says: only its weights could prove it."""

    shares: bool


SPREAD = 16  # micro-batches of all sizes that are looked at beside the largest


def _largest(plans: Iterable[Any], make: Any) -> tuple[Batch, ...]:
    """The shapes of the micro-batches that may need most: those with most slots, those with the longest lines, and some of all
    sizes. On a CPU a smaller one may need more: its logits are not computed at once (models.scoring)."""
    from mlxforge.training.probe import LARGEST

    plans = sorted(plans, key=lambda one: one.slots)
    chosen = plans[:: max(1, len(plans) // SPREAD)] + plans[-LARGEST:] + sorted(plans, key=lambda one: one.width)[-LARGEST:]
    return tuple(shape_of(make(one)) for one in {id(one): one for one in chosen}.values())


def shape_of(batch: Any) -> Batch:
    """The shape of a micro-batch of rows or of pairs."""
    lines, width = batch.tokens.shape
    trained, prompts = int(batch.positions.shape[0]), getattr(batch, "prompts", None)
    if prompts is None:
        return Batch(lines * width, trained, lines * width**2, batch.segments is not None)
    heads, wide = prompts.shape
    seen = lines * width * (wide + width)  # answers look at their prompts through a mask
    return Batch(batch.slots, trained, heads * wide**2 + seen, True, lines * (wide + width), heads * wide)


def probed(config: TrainSettings, model: Shapes, emit: Emit, cache: Path, said: Forecast) -> Forecast:
    """Memory and time as two updates on this machine have them."""
    from mlxforge.training.probe import probe

    prepared = prepare(config, emit, cache=cache)
    needs = lambda batch: sum(peak(config, model, shape_of(batch)).values())  # noqa: E731
    found = probe(prepared.job(None, lambda: 0), prepared.evaluation_slots, needs)
    measured = {part: int(found["memory"].get(part, 0)) for part in said.parts}
    # MLX counts logits among all that is alive: the forecast's share of them is told apart.
    measured["logits"] = min(said.parts["logits"], measured["activations"])
    measured["activations"] -= measured["logits"]
    measured["caches"] = said.parts["caches"]
    return Forecast(measured, found["seconds"])
