"""A fast BLAS and a thrifty allocator under MLX on Linux. On macOS there is nothing to do.

MLX's Linux wheel links the reference BLAS: float32 matrix products run about 30 times slower than with OpenBLAS. Loading
OpenBLAS with global symbols *before* ``import mlx.core`` makes its functions win.

MLX's CPU backend asks malloc for every array. glibc maps each large one afresh and gives it back when freed, so the kernel
clears the same pages again and again: a training step took a quarter longer.
"""

from __future__ import annotations

import ctypes
import sys

NAMES = ("libopenblas.so.0", "libopenblas.so")
HINT = "install OpenBLAS for 30 times faster training on Linux: sudo apt-get install libopenblas0-pthread"
# mallopt(3): parameter -> value. One heap for all threads, grown in large steps, that keeps what is freed.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
HEAP = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 << 20}


def load_blas() -> str | None:
    """Prepares Linux for MLX; to be called before ``import mlx.core``, any number of times.

    Returns:
        The name of the BLAS that was loaded, ``""`` where none is needed, None where none was found.
    """
    if not sys.platform.startswith("linux"):
        return ""
    _keep_memory()
    for name in NAMES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    return None


def _keep_memory() -> None:
    # Only glibc has mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in HEAP.items():
            mallopt(parameter, value)
