"""runs/<stage>.json: who made an output, when, and at what cost. No stage depends on it."""

from __future__ import annotations

import resource
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.support.costs import COSTS
from tasks.support.energy import EnergyMeter
from tasks.support.gpus import Gpus
from tasks.support.memory import forget_peak, inherited_bytes, peak_rss_bytes


@dataclass
class Clock:
    """What the work since it was made cost, finished children included."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    wall: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=lambda: cpu_seconds())
    energy: EnergyMeter = field(default_factory=EnergyMeter)
    inherited: int = field(default_factory=inherited_bytes)

    def __post_init__(self) -> None:
        forget_peak()

    def times(self) -> dict[str, str]:
        """When it was made and what time it is, as runs/<stage>.json holds them."""
        return {
            "start": self.started.isoformat(timespec="seconds"),
            "end": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def cost(self, gpus: Gpus | None = None) -> dict[str, float]:
        """What it cost so far, by the names of `COSTS`; what no chip tells is left out.

        Args:
            gpus: what the work had; None for what needed none.
        """
        wall = time.monotonic() - self.wall
        inherited = min(self.inherited, inherited_bytes())  # what was written to since is its own
        found: dict[str, float | None] = {
            "wall_seconds": wall,
            "cpu_seconds": cpu_seconds() - self.cpu,
            "peak_rss_mib": (peak_rss_bytes() - inherited) / 2**20,
            "cpu_energy_joules": self.energy.cpu_joules(),
        }
        if gpus is not None:
            found["gpu_seconds"] = wall * gpus.count
            found["peak_gpu_mib"] = gpus.peak_bytes / 2**20
            found["gpu_energy_joules"] = self.energy.gpu_joules(gpus.uuids)
        told = {name: value for name, value in found.items() if value is not None}
        return {name: round(told[name], 3) for name in COSTS if name in told}


def cpu_seconds() -> float:
    """User and system time of this process and its finished children (seconds)."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


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
