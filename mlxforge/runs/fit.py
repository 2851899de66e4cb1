"""Settings that make a run fit into some memory, with the least slowdown; what they cost is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from mlxforge.core.errors import ConfigError
from mlxforge.core.settings import TrainSettings
from mlxforge.models.shapes import Shapes
from mlxforge.runs.forecast import Batch, Forecast, Work, forecast, operations, speed_for

# Of what is forecast: it may be a fifth off; less once a probe corrected it.
MARGIN, PROBED_MARGIN = 1.2, 1.1
SMALLER = 1.05  # time, each time that a micro-batch is halved
LEAST_TOKENS, LEAST_LENGTH = 256, 128
COSTS = {
    "batch_tokens": "smaller micro-batches; accumulate keeps the tokens of an update",
    "grad_checkpoint": "layers are computed again in the backward pass",
    "max_length": "shorter rows",
}


@dataclass(frozen=True)
class Fit:
    """What to change so that a run fits, nothing where it does as it is.

    Attributes:
        slowdown: time, as a multiple.
        margin: the multiple of the forecast that fits.
    """

    changes: dict[str, Any]
    forecast: Forecast
    slowdown: float
    notes: tuple[str, ...]
    margin: float = MARGIN

    def told(self) -> dict[str, Any]:
        """As a plan shows it."""
        flags = " ".join(_flag(key, value) for key, value in self.changes.items())
        told = {"changes": self.changes, "flags": flags, "slowdown": round(self.slowdown, 2), "notes": list(self.notes)}
        return told | {"headroom": round(self.margin - 1, 2)}


def _flag(key: str, value: Any) -> str:
    name = "--" + key.replace("_", "-")
    return name if value is True else f"{name} {value}"


def fit(
    config: TrainSettings, model: Shapes, work: Work, memory: int, correction: float | None = None, rows: Sequence[int] = ()
) -> Fit:
    """The settings with least slowdown whose forecast, with a margin, is within ``memory`` bytes.

    Rows are shortened only where nothing else helps, and then it is said what that costs.

    Args:
        correction: what a probe measured, as a multiple of what was forecast; None where there was none.
        rows: lengths of the rows to train on.

    Raises:
        ConfigError: nothing fits; it says the least that would be needed, and what would help.
    """
    speed = speed_for(model)
    least: Forecast | None = None
    margin = MARGIN if correction is None else PROBED_MARGIN
    for changes, halvings, changed, shape in choices(config, model, work):
        said = forecast(changed, shape, model=model, speed=speed).corrected(correction or 1.0)
        if margin * said.total <= memory:
            slower = SMALLER**halvings
            said = replace(said, seconds=slower * (said.seconds or 0.0))
            return Fit(changes, said, slower * _recomputing(model, config, changed), _notes(changes, rows, config), margin)
        least = said if least is None or said.total < least.total else least
    assert least is not None
    trained = sum(least.parts[part] for part in ("adapters", "optimizer", "gradients"))
    raise ConfigError(
        f"{size_text(memory)} are not enough: the least that this run needs is "
        f"{size_text(int(margin * least.total))}, with {size_text(least.parts['weights'])} of weights and "
        f"{size_text(trained)} for what is trained",
        where="--memory",
        fix=helps(config, model),
    )


def helps(config: TrainSettings, model: Shapes) -> str:
    """What would make a run smaller that no setting of its batches does."""
    ways = []
    if config.lora.kind == "full":
        ways.append("lora.kind lora")
    if not model.quantized:
        ways.append("a base of 4 bits (a quarter of the weights)")
    if config.lora.kind != "full" and config.lora.rank > 8:
        ways.append("a lower lora.rank")
    return ", or ".join([*ways, "a smaller model"])


def choices(config: TrainSettings, model: Shapes, work: Work) -> Iterator[tuple[dict[str, Any], int, TrainSettings, Work]]:
    """(changes, times that batches are halved, settings, work): first those that keep the rows whole, by slowdown."""
    length = config.max_length
    while True:
        found = []
        longest = min(max(width_of(batch) for batch in work.largest), length)
        for halvings, tokens in enumerate(halved(config.batch_tokens, max(longest, LEAST_TOKENS))):
            for checkpoint in (False, True) if not config.grad_checkpoint else (True,):
                changes = _changes(config, tokens, checkpoint, length, 2**halvings)
                changed = msgspec.structs.replace(config, **changes)
                slower = SMALLER**halvings * _recomputing(model, config, changed)
                found.append((slower, changes, halvings, changed, tokens))
        for _, changes, halvings, changed, tokens in sorted(found, key=lambda one: one[0]):
            trained, scored = (tuple(smaller(one, tokens, length) for one in some) for some in (work.largest, work.evaluated))
            shape = replace(work, largest=trained, evaluated=scored)
            yield changes, halvings, changed, shape
        if length <= LEAST_LENGTH:
            return
        length = max(length // 2, LEAST_LENGTH)


def halved(value: int, least: int) -> Iterator[int]:
    """The value, its half, and so on, while it is not below ``least``; the value itself in any case."""
    yield value
    while value // 2 >= least:
        value //= 2
        yield value


def width_of(batch: Batch) -> int:
    """Tokens of a line."""
    return max(1, batch.scores // max(batch.slots, 1))


def smaller(batch: Batch, tokens: int, length: int) -> Batch:
    """The batch with lines of at most ``length`` and as many of them as ``tokens`` hold, one at least."""
    width = min(width_of(batch), length)
    slots = min(batch.slots, max(width, tokens // width * width))
    share = slots / batch.slots
    return replace(
        batch,
        slots=slots,
        trained=max(1, round(batch.trained * share)),
        scores=slots * width,
        repeated=round(batch.repeated * share),
        before=round(batch.before * share),
    )


def _changes(config: TrainSettings, tokens: int, checkpoint: bool, length: int, times: int) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "batch_tokens": tokens,
        "accumulate": config.accumulate * times,
        "grad_checkpoint": checkpoint,
        "max_length": length,
    }
    changed = {key: value for key, value in wanted.items() if value != getattr(config, key)}
    if checkpoint and "grad_checkpoint" in changed and getattr(config, "share_prompt", "auto") == "on":
        changed["share_prompt"] = "auto"
    return changed


def _recomputing(model: Shapes, config: TrainSettings, changed: TrainSettings) -> float:
    """Time with the changed settings' recomputation, as a multiple of that without."""
    return operations(model, changed) / operations(model, config)


def _notes(changes: dict[str, Any], rows: Sequence[int], config: TrainSettings) -> tuple[str, ...]:
    notes = [f"{key} {changes[key]}: {COSTS[key]}" for key in COSTS if key in changes and key != "max_length"]
    if length := changes.get("max_length"):
        longer, overlong = sum(int(row) > length for row in rows), getattr(config, "overlong", None)
        what = f"go by overlong {overlong}" if overlong else "become several windows, so that the model sees less before each"
        short = f"max_length {length} instead of {config.max_length}"
        notes.append(f"{short}: {longer:,} of {len(rows):,} rows are longer and {what}")
    return tuple(notes)


UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of ``16GB``, ``800 MB`` or ``12.5G``; units are powers of 1024, as memory is sold.

    Raises:
        ConfigError: it is no size.
    """
    plain = text.strip().upper().replace("IB", "B").removesuffix("B") or "x"
    unit = UNITS.get(plain[-1], 0)
    number = plain[:-1] if unit else plain
    try:
        size = float(number) * (unit or 1)
    except ValueError:
        size = 0.0
    if not 0 < size < 1 << 60:
        raise ConfigError(f"'{text}' is no size", where="--memory", fix="write it as 16GB or 800MB")
    return int(size)


def size_text(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / 2**30:,.1f} GB" if size >= 1 << 30 else f"{size / 2**20:,.0f} MB"
