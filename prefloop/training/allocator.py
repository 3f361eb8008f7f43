"""Memory that a training frees stays with its process: the next step asks for the same sizes again."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_LARGE = 2**30


def keep_freed_memory() -> bool:
    """Has glibc serve blocks of up to 1 GiB from a heap that it does not shrink.

    By default it maps large blocks anew each time, and the system fills every page of them with zeros when it
    is touched first (`python -m benchmarks.techniques memory` times a step either way). Pages of 2 MiB, where
    the system lets a process ask for them, spare address translations, too; torch asks if the variable is set
    before its first large tensor. All threads share the heap: those that glibc makes for further threads give
    their memory back. Whoever set either in the environment keeps what they chose.

    Returns:
        True where it took effect: with glibc on Linux.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    kept = mallopt(_MMAP_THRESHOLD, _LARGE) and mallopt(_TRIM_THRESHOLD, 2 * _LARGE - 1)
    return bool(kept and mallopt(_ARENA_MAX, 1))
