"""Numbers as people read them: losses, token counts, bytes, times."""

from __future__ import annotations

import math

from mlxforge.core.units import NONE as NONE
from mlxforge.core.units import clock as clock
from mlxforge.core.units import dollars as dollars
from mlxforge.core.units import size as size


def number(value: float | None, digits: int = 4) -> str:
    """``digits`` significant digits, fixed point where that is readable: 2.314, 0.012, 1.2e-05, 123,456."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size and not 1e-3 <= size < 1e6:
        return rate(value)
    whole = len(str(int(size))) if size >= 1 else 1
    return f"{value:,.{max(digits - whole, 0)}f}"


def rate(value: float | None) -> str:
    """A learning rate, always in powers of ten: 2.9e-04."""
    return f"{value:.1e}" if value is not None and math.isfinite(value) else NONE


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent."""
    return f"{100 * part / whole:.1f} %" if whole else NONE


def count(value: float) -> str:
    """A count in at most five characters and a letter: 987, 12.3 k, 4.56 M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            return f"{number(value / (1e3 if letter == 'k' else unit), 3)} {letter}"
    return f"{value:,.0f}"


def model_name(model: str) -> str:
    """A model as it is shown: a run by its name, wherever it lies."""
    return f"run:{model.rstrip('/').rpartition('/')[2]}" if model.startswith("run:/") else model


def one_line(text: str) -> str:
    """Foreign text made safe for a terminal: line ends become ``↵``, every other control character a space."""
    shown = text.strip().replace("\r\n", "\n").replace("\n", "↵")
    return "".join(letter if letter.isprintable() else " " for letter in shown)
