"""A fast BLAS under MLX on Linux.

MLX's Linux wheel links the reference BLAS: float32 matrix products run about 30 times slower than with OpenBLAS. Loading
OpenBLAS with global symbols *before* ``import mlx.core`` makes its functions win. On macOS there is nothing to do.
"""

from __future__ import annotations

import ctypes
import sys

NAMES = ("libopenblas.so.0", "libopenblas.so")
HINT = "install OpenBLAS for 30 times faster training on Linux: sudo apt-get install libopenblas0-pthread"


def load_blas() -> str | None:
    """Loads OpenBLAS on Linux. Returns the library's name, ``""`` where none is needed, None where none was found."""
    if not sys.platform.startswith("linux"):
        return ""
    for name in NAMES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    return None
