"""The C library's allocator, told to keep what training frees."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
MOST_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Let glibc reuse large freed arrays within this process; True where that was possible, a no-op elsewhere.

    By default it gives an array above a threshold back to the system at once, and the next one of the same size begins
    with a page fault every 4 KiB: in a step of training, which frees and makes the same arrays again and again, a good
    part of the time. And what a thread of its own has freed it keeps for that thread, in arenas too small for a large array:
    so one arena for all. mallopt(3) describes the parameters.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = (M_MMAP_THRESHOLD, MOST_KEPT), (M_TRIM_THRESHOLD, MOST_KEPT), (M_ARENA_MAX, 1)
    return all(mallopt(parameter, value) for parameter, value in settings)
