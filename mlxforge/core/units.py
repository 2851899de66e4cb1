"""Bytes as people read them."""

from __future__ import annotations

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(octets: float) -> str:
    """Bytes in decimal units: 820 MB, 1.24 GB, -12.3 kB."""
    scale, name = next(((scale, name) for scale, name in UNITS if abs(octets) >= scale), (1.0, "B"))
    part = octets / scale
    digits = 0 if scale == 1 else 2 if abs(part) < 10 else 1 if abs(part) < 100 else 0
    return f"{part:,.{digits}f} {name}"
