"""Where tables are written."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console

PIPE = 200  # columns of what is no terminal


def console(stream: TextIO | None = None) -> Console:
    """A console on a stream, stdout by default. A pipe has no width: lines stay whole there, for grep and awk."""
    out = stream or sys.stdout
    return Console(file=out, highlight=False, width=None if out.isatty() else PIPE)
