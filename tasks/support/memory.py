"""The largest memory that a process had of its own, since a moment that it chooses."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc/self")
_FORGET_PEAK = "5"
"""Written to clear_refs, it sets the peak to what is resident now (Linux)."""


def forget_peak() -> None:
    """Has `peak_rss_bytes` begin anew, where the kernel can."""
    with suppress(OSError):
        (_PROC / "clear_refs").write_text(_FORGET_PEAK)


def peak_rss_bytes() -> int:
    """Largest resident set of this process (bytes): since `forget_peak` on Linux, else since its start.

    On Linux not what getrusage says: that begins with the peak of the process that started this one.
    """
    peak = _field(_PROC / "status", "VmHWM")
    if peak is not None:
        return peak
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def inherited_bytes() -> int:
    """Written-to memory that this process still shares with the one it was forked from (bytes); 0 where there
    is none, or no telling."""
    return _field(_PROC / "smaps_rollup", "Shared_Dirty") or 0


def _field(file: Path, name: str) -> int | None:
    """A field of a file under /proc that is given in kB, as bytes; None where there is none."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
