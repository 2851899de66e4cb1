"""Draws the README's picture of the dashboard from a real run.

python scripts/draw_dashboard.py runs/EVENTS -o docs/dashboard.svg
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich.console import Console

from mlxforge.core.eventlog import EVENTS, replay
from mlxforge.core.events import RunEnded, StepDone
from mlxforge.ui.frame import KEYS, Frame
from mlxforge.ui.state import State


def state_at(log: Path, step: int | None) -> State:
    """The run as it stood after ``step``, by default at two thirds of its steps."""
    events = list(replay(log))
    steps = [event for event in events if isinstance(event, StepDone)]
    if not steps:
        raise SystemExit(f"{log}: no step to draw")
    until = step or steps[-1].steps * 2 // 3
    state = State(now=lambda: 0.0)
    for event in events:
        if isinstance(event, RunEnded) or (isinstance(event, StepDone) and event.step > until):
            break
        state.hear(event)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/dashboard.svg"))
    parser.add_argument("--step", type=int)
    parser.add_argument("--width", type=int, default=110)
    parser.add_argument("--height", type=int, default=32)
    given = parser.parse_args()
    console = Console(
        record=True, width=given.width, height=given.height, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Frame(state_at(given.run / EVENTS, given.step), KEYS), end="")
    picture = console.export_svg(title=f"mlxforge · {given.run.name}")
    # A picture that loads no fonts from elsewhere.
    picture = re.sub(r"@font-face\s*{.*?}", "", picture, flags=re.DOTALL)
    given.output.write_text(picture.replace("Fira Code, monospace", "Menlo, Consolas, DejaVu Sans Mono, monospace"))


if __name__ == "__main__":
    main()
