"""Bytes, times and money as people read them."""

from __future__ import annotations

import math

NONE = "–"
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(octets: float) -> str:
    """Bytes in decimal units: 820 MB, 1.24 GB, -12.3 kB."""
    scale, name = next(((scale, name) for scale, name in UNITS if abs(octets) >= scale), (1.0, "B"))
    part = octets / scale
    digits = 0 if scale == 1 else 2 if abs(part) < 10 else 1 if abs(part) < 100 else 0
    return f"{part:,.{digits}f} {name}"


def clock(seconds: float | None) -> str:
    """A length of time: 0:07, 12:34, 1:02:03, 2d 03:04."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def dollars(cost: float) -> str:
    """US dollars: $1.25; a small sum is not none."""
    return f"${cost:,.2f}" if cost >= 0.01 or not cost else "under $0.01"
