"""Chooses the BLAS that multiplies MLX's matrices on Linux.

MLX's wheel brings the reference BLAS; a fast one is 15 to 35 times faster. On a Mac nothing is done: MLX uses
the GPU and Accelerate there.
"""

import ctypes
import importlib.util
import os
import platform
import sys
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_OPENBLAS = (
    "/usr/lib/{arch}-linux-gnu/openblas-pthread/libblas.so.3",
    "/usr/lib/{arch}-linux-gnu/libopenblas.so.0",
    "/usr/lib64/libopenblas.so.0",
)


def use_fast_blas(processes: int = 1) -> Path | None:
    """Load a fast BLAS, before MLX is loaded; return the library's path, or None if there is no fast one.

    `processes` that compute at the same time share the machine's cores, unless the user has set a number of
    threads. A BLAS that the user preloads with LD_PRELOAD comes before ours.
    """
    library = find_fast_blas()
    if library is None:
        return None
    limit_threads(processes)
    # MLX's calls are bound to the first library of the process that has the function.
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return library


def find_fast_blas() -> Path | None:
    """Return the best of `all_fast_blas`, or None."""
    return next(iter(all_fast_blas()), None)


def all_fast_blas() -> list[Path]:
    """Return the system's OpenBLAS and the BLAS inside the installed torch, if they exist, best first."""
    if sys.platform != "linux":
        return []
    places = [Path(place.format(arch=platform.machine())) for place in _OPENBLAS]
    # Found without importing torch, which takes seconds.
    torch = importlib.util.find_spec("torch")
    if torch and torch.origin:
        places.append(Path(torch.origin).parent / "lib" / "libtorch_cpu.so")
    return [place for place in places if place.is_file()]


def limit_threads(processes: int) -> None:
    """Set the variables that say how many threads a BLAS may use, to cores / `processes`.

    It has to be done before the BLAS is loaded. Nothing happens where the user has set one of them.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in THREAD_VARIABLES):
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
        # Threads that wait sleep: beside other work, spinning makes products ten times as slow.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
