"""One module a pipeline stage, run as `python -m tasks.STAGE`."""

import ctypes
import os
import sys

# Threads that wait for one another spin this often before they sleep. OpenMP reads it when torch is first
# imported, so it stands here. Its own default spins for milliseconds: on cores that others use too, a
# step then took up to eight times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

if sys.platform == "linux":
    # glibc hands each large tensor's memory back to the kernel and gets it again, page by page, in the next
    # step. Keeping it took 5 to 15 per cent off a step of the embedded model.
    _M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
    _libc = ctypes.CDLL(None)
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_THRESHOLD, 256 << 20)
        _libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
