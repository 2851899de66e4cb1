"""Figures as people read them."""

from __future__ import annotations

from mlxforge.core.units import clock, dollars, size


def test_bytes_have_three_digits():
    shown = [size(octets) for octets in (0, 999, 1500, 12_340, 820e6, 1.24e9, -15.8e6, 2.5e12)]
    assert shown == ["0 B", "999 B", "1.50 kB", "12.3 kB", "820 MB", "1.24 GB", "-15.8 MB", "2,500 GB"]


def test_times_and_small_sums_are_not_nothing():
    assert [clock(seconds) for seconds in (7, 754, 3723, 184_000, None)] == ["0:07", "12:34", "1:02:03", "2d 03:06", "–"]
    assert [dollars(cost) for cost in (0, 0.004, 0.01, 1234.5)] == ["$0.00", "under $0.01", "$0.01", "$1,234.50"]
