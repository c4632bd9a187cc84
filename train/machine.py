"""What the libraries do not find out about the machine by themselves, told to them before or after they are loaded."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
MOST_KEPT = 1 << 30  # bytes
AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}  # what OpenBLAS's kernels for Skylake-X need


def prepare_libraries(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Settings that are read when the libraries are loaded, so to be called first; what the user has set stays.

    GOMP_SPINCOUNT: how long a thread of torch's libgomp spins while it waits for the others. On an idle machine this count
    costs nothing against the default; beside one other busy process on two cores a step took 0.65 times as long (median).

    OPENBLAS_CORETYPE: OpenBLAS 0.3.31, which comes with NumPy, takes AMD's fifth Zen for a processor without AVX-512. With
    the kernels for Skylake-X one float32 product of (768, 128) by (128, 512) ran at 223 instead of 117 GFLOP/s on one core.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if _is_amd_with_avx512(cpuinfo):
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def _is_amd_with_avx512(cpuinfo: Path) -> bool:
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return "AuthenticAMD" in text and AVX512.issubset(flags)


def keep_freed_memory() -> bool:
    """Let glibc reuse large freed arrays within this process; True where that was possible, a no-op elsewhere.

    By default it gives an array above a threshold back to the system at once, and the next one of the same size begins
    with a page fault every 4 KiB: in a step of training, which frees and makes the same arrays again and again, a good
    part of the time. mallopt(3) describes both parameters.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, MOST_KEPT) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
