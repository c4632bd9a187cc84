"""The C library's allocator, told to keep what training frees."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
MOST_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Let glibc reuse large freed arrays within this process; True where that was possible, a no-op elsewhere.

    By default it gives an array above a threshold back to the system at once, and the next one of the same size begins
    with a page fault every 4 KiB: in a step of training, which frees and makes the same arrays again and again, a good
    part of the time. mallopt(3) describes the parameters.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, MOST_KEPT) for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
