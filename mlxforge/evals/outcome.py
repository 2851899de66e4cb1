"""What stands beside the figures on a report's pages: the verdict of the gate, and the stages of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from mlxforge.core.errors import DataError
from mlxforge.core.units import clock, dollars
from mlxforge.evals.checks import Check, Verdict
from mlxforge.evals.figures import number, signed, spread
from mlxforge.evals.report import ROAD, VERDICT
from mlxforge.evals.road import Gain, Outcome, Summary

T = TypeVar("T")
STAGES = ("stage", "made", "gained", "time", "tokens", "peak memory", "disk", "cost")
CHECKS = ("", "requirement", "figure", "value", "interval", "remark")


class Beside(NamedTuple):
    """What the folder of a report holds besides; None where there is none."""

    verdict: Verdict | None = None
    road: Summary | None = None


def beside(folder: Path) -> Beside:
    """Reads ``gate.json`` and ``pipeline.json`` of a report's folder.

    Raises:
        DataError: one of them is damaged.
    """
    return Beside(_read(folder / VERDICT, Verdict), _read(folder / ROAD, Summary))


def _read(file: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"damaged: {error}", where=str(file), fix="remove it") from error


def told(verdict: Verdict) -> str:
    """``passed: 3 of 3 requirements met``."""
    met = sum(check.passed for check in verdict.requirements)
    return f"{'passed' if verdict.passed else 'failed'}: {met} of {len(verdict.requirements)} requirements met"


def check_cells(check: Check) -> tuple[str, ...]:
    """One check in the columns of :data:`CHECKS`."""
    shown = signed(check.value) if check.value is not None and check.against else number(check.value)
    against = f" against {check.against}" if check.against else ""
    figure = f"{check.model}{against}, {check.set}"
    return ("passed" if check.passed else "FAILED", check.text, figure, shown, spread(check.low, check.high), check.why)


def stage_cells(one: Outcome) -> tuple[str, ...]:
    """One stage in the columns of :data:`STAGES`."""
    return (
        one.stage,
        one.made or one.status,
        "; ".join(map(_gain, one.gains)),
        clock(one.seconds) if one.seconds else "",
        f"{one.tokens:,}" if one.tokens else "",
        number(one.peak_memory, "bytes") if one.peak_memory else "",
        number(one.disk, "bytes") if one.disk else "",
        dollars(one.cost) if one.cost else "",
    )


def sum_cells(road: Summary) -> tuple[str, ...]:
    """All stages together, in the columns of :data:`STAGES`."""
    return stage_cells(
        Outcome(
            stage="all",
            status="",
            done=True,
            seconds=road.seconds,
            tokens=road.tokens,
            peak_memory=road.peak_memory,
            disk=road.disk,
            cost=road.cost,
        )
    )


def _gain(one: Gain) -> str:
    shown = [f"{value:.1%}" if one.share else number(value) for value in (one.before, one.after) if value is not None]
    return f"{one.name.replace('_', ' ')} {' → '.join(shown)}"


def stages(road: Summary) -> Iterator[tuple[str, ...]]:
    """All stages, and their sum."""
    yield from map(stage_cells, road.stages)
    yield sum_cells(road)
