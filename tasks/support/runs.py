"""runs/<stage>.json: who made an output, when, and at what cost. No stage depends on it."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass
class Clock:
    """Wall and processor time since it was made, children included (seconds)."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    wall: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=lambda: cpu_seconds())

    def record(self) -> dict[str, Any]:
        """Start, end and cost so far, as runs/<stage>.json holds them."""
        return {
            "start": self.started.isoformat(timespec="seconds"),
            "end": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": round(time.monotonic() - self.wall, 3),
            "cpu_seconds": round(cpu_seconds() - self.cpu, 3),
            "peak_rss_mib": round(peak_rss_bytes() / 2**20, 1),
        }


def cpu_seconds() -> float:
    """User and system time of this process and its finished children (seconds)."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far (bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def git_state(root: Path = Path(".")) -> dict[str, Any]:
    """Commit and whether tracked files differ from it (dvc.lock aside, which a run itself writes); None
    outside git."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": None, "git_dirty": None}
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
