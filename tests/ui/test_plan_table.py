"""The plan of a pipeline in terminals of every width: what happens to a stage and what it costs is never cut off."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mlxforge.evals.road import Forecast, PlanRow
from mlxforge.ui.pipeline import show_plan

PLAN = [
    PlanRow(stage="sft:socratic", action="skip", why="nothing changed"),
    PlanRow(
        stage="dpo:socratic",
        action="resume",
        why="after sft:socratic, pairs:socratic",
        forecast=Forecast(tokens=43_600, steps=43, seconds=4000, memory=106 << 20, disk=4 << 20, cost=12.5, rough=True),
    ),
]


@pytest.mark.parametrize("width", [60, 72, 80, 100, 160])
def test_a_plan_fits_into_its_terminal(width):
    out = Console(file=io.StringIO(), width=width)
    show_plan(PLAN, out)
    text = out.file.getvalue()
    for word in ("sft:socratic", "skip", "dpo:socratic", "go on", "~1:06:40", "~111 MB", "$12.50"):
        assert word in text
    assert ("~43.6 k" in text) == (width >= 80)
    assert ("4.19 MB" in text) == (width >= 100)
    assert "…" not in text
