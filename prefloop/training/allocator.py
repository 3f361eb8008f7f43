"""Memory that a training frees stays with its process: the next step asks for the same sizes again."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_NEVER = -1
_LARGE = 2**30
_PIECE = _LARGE - 2**24
_PAGE = 2**12
_OVERCOMMIT = "/proc/sys/vm/overcommit_memory"


def keep_freed_memory() -> bool:
    """Has glibc serve blocks of up to 1 GiB from a heap that it does not shrink, in huge pages.

    By default it maps large blocks anew each time, and the system fills every page of them with zeros when it
    is touched first (`python -m benchmarks.techniques memory` times a step either way). All threads share the
    heap: those that glibc makes for further threads give their memory back. Whoever set a variable of glibc's
    in the environment keeps what they chose, and huge pages are torch's own matter where
    THP_MEM_ALLOC_ENABLE is set.

    Returns:
        True where it took effect: with glibc on Linux.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = (_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1)
    kept = all(mallopt(*setting) for setting in settings)
    # torch would put large tensors on boundaries of huge pages. One that is let go leaves a hole that the
    # next of its size does not fit into, so that the heap grows for many steps.
    if kept and "THP_MEM_ALLOC_ENABLE" not in os.environ and _addresses_are_free():
        _lengthen(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return kept


def _addresses_are_free() -> bool:
    """True where addresses that are never touched cost nothing, and none is lacking elsewhere for them."""
    import resource

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return False
    try:
        with open(_OVERCOMMIT, encoding="ascii") as setting:
            return setting.read().strip() != "2"
    except OSError:
        return False


@cache
def _lengthen(size: int) -> None:
    """Gives the heap so many bytes of addresses more at its end, once. Their pages are to be huge where the
    system lets a process ask for that: it spares address translations."""
    import mmap

    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    pieces = [libc.malloc(_PIECE) for _ in range(size // _PIECE)]
    for start in filter(None, reversed(pieces)):
        first = -(-start // _PAGE) * _PAGE
        libc.madvise(first, (start + _PIECE - first) // _PAGE * _PAGE, mmap.MADV_HUGEPAGE)
        libc.free(start)
