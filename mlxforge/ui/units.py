"""Numbers as people read them: losses, token counts, bytes, times."""

from __future__ import annotations

import math

from mlxforge.core.units import size as size

NONE = "–"


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


def clock(seconds: float | None) -> str:
    """A length of time: 0:07, 12:34, 1:02:03, 2d 03:04."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def model_name(model: str) -> str:
    """A model as it is shown: a run by its name, wherever it lies."""
    return f"run:{model.rstrip('/').rpartition('/')[2]}" if model.startswith("run:/") else model


def one_line(text: str) -> str:
    """Foreign text made safe for a terminal: line ends become ``↵``, every other control character a space."""
    shown = text.strip().replace("\r\n", "\n").replace("\n", "↵")
    return "".join(letter if letter.isprintable() else " " for letter in shown)
