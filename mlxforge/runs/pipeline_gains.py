"""What a stage's result says it gained, and what it made, in figures and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlxforge.core.units import size
from mlxforge.evals.road import Gain
from mlxforge.runs.pipeline_order import Step
from mlxforge.runs.stage_settings import TRAINING


def summed_up(step: Step, result: Mapping[str, Any]) -> str:
    """All of it in a line."""
    return told(list(gains(result))) if step.stage in TRAINING else made_of(step.stage, result)


def told(found: list[Gain]) -> str:
    """Gains in a line: ``valid bpb 1.393 → 1.016, exact match 0.0% → 95.0%``."""
    return ", ".join(f"{one.name.replace('_', ' ')} {_number(one, one.before)} → {_number(one, one.after)}" for one in found)


def _number(gain: Gain, value: float | None) -> str:
    return "?" if value is None else f"{value:.1%}" if gain.share else f"{value:.3f}"


def made_of(stage: str, result: Mapping[str, Any]) -> str:
    """What a stage made, in words; of one that trains nothing."""
    return str(MADE[stage](result)) if stage in MADE else ""


def tokens_of(stage: str, result: Mapping[str, Any]) -> int:
    """Tokens that a stage trained on, read, or asked for."""
    return int(result.get("tokens") or 0) if stage in TRAINING or stage == "ingest" else _asked(result)


def gains(result: Mapping[str, Any]) -> Iterator[Gain]:
    """Before and after of a training run: its held-out text, its task, general text."""
    for name, (before, after) in {
        "valid": (result.get("before"), result.get("valid")),
        "retention": _pair(result.get("retention")),
    }.items():
        if name == "retention":
            for task, score in (result.get("task") or {}).items():
                yield Gain(name=task, before=score["before"], after=score["after"], share=True)
        if before and after and after.get("bpb") is not None:
            yield Gain(name=f"{name} bpb", before=before.get("bpb"), after=after.get("bpb"), better="lower")


def _pair(found: Any) -> tuple[Any, Any]:
    return (found.get("before"), found.get("after")) if isinstance(found, dict) else (None, None)


def _asked(result: Mapping[str, Any]) -> int:
    return int(result.get("prompt_tokens") or 0) + int(result.get("completion_tokens") or 0)


def _rows(result: Mapping[str, Any]) -> str:
    rows = result.get("rows") or {}
    return f"{sum(rows.values()):,} rows" if isinstance(rows, dict) else f"{rows:,} rows"


MADE: dict[str, Any] = {
    "ingest": lambda result: f"{result['total']['documents']:,} documents, {result['total']['tokens']:,} tokens",
    "synth": _rows,
    "pairs": lambda result: f"{result['pairs']:,} pairs",
    "eval": lambda result: f"{len(result['models'])} models compared",
    "fuse": lambda result: size(result["bytes"]),
    "export": lambda result: ", ".join(f"{Path(file['file']).name} {size(file['bytes'])}" for file in result["files"]),
    "verify": lambda result: f"{sum(file['checks'] for file in result['files'])} checks passed",
}
