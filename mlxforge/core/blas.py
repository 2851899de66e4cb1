"""A fast BLAS and a thrifty allocator under MLX on Linux. On macOS there is nothing to do.

MLX's Linux wheel links the reference BLAS: float32 matrix products run about 30 times slower than with OpenBLAS. Loading
OpenBLAS with global symbols *before* ``import mlx.core`` makes its functions win.

MLX's CPU backend asks malloc for every array. glibc maps each large one afresh and gives it back when freed, so the kernel
clears the same pages again and again: a training step took a tenth longer.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

NAMES = ("libopenblas.so.0", "libopenblas.so")
HINT = "install OpenBLAS for 30 times faster training on Linux: sudo apt-get install libopenblas0-pthread"
LATE = "mlx was imported before mlxforge could load OpenBLAS: import mlxforge.api first for 30 times faster training on Linux"
# mallopt(3): parameter -> value. Large arrays lie in the heap, which grows in large steps and keeps what is freed. More than
# one arena stays allowed: with a single one the tokenizer's threads wait for each other (three times slower).
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
HEAP = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 << 20}


@cache
def load_blas() -> str:
    """Prepares Linux for MLX; to be called before ``import mlx.core``, any number of times.

    Returns:
        What keeps MLX slow here, with what mends it; ``""`` where nothing does.
    """
    if not sys.platform.startswith("linux"):
        return ""
    _keep_memory()
    late = "mlx.core" in sys.modules and not _loaded()
    for name in NAMES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return LATE if late else ""
    return HINT


def _loaded() -> bool:
    """Whether OpenBLAS is in the process already."""
    with open("/proc/self/maps") as file:
        return any("libopenblas" in line and "numpy" not in line for line in file)


def _keep_memory() -> None:
    # Only glibc has mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in HEAP.items():
            mallopt(parameter, value)
