"""Commands timed in turn, A B A B, so that what else the machine does hits them alike."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workspaces import environment

PREFLOOP = ("flows.cli.main", "run", "--jobs", "1")
DVC = ("dvc", "repro")
SERVER_LOG = Path(".prefloop/logs/prefect-server.log")


@dataclass(frozen=True)
class Cost:
    """Of one command, with every process that it waited for (seconds)."""

    wall: float
    cpu: float


def timed(folder: Path, arguments: Sequence[str], **extra: str) -> Cost:
    """Runs `python -m ARGUMENTS` in a workspace; exits where it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment(folder, **extra),
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def median(costs: Sequence[Cost]) -> Cost:
    """Of both figures, each by itself."""
    return Cost(statistics.median(c.wall for c in costs), statistics.median(c.cpu for c in costs))


def in_turn(ways: Mapping[str, Callable[[], Cost]], repeats: int) -> dict[str, Cost]:
    """Runs all ways in turn, `repeats` times; medians by way."""
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            found[name].append(run())
    return {name: median(costs) for name, costs in found.items()}


def forced(folder: Path, repeats: int) -> dict[str, Cost]:
    """Every stage of a workspace run: by prefloop, by bare DVC without tracking."""
    return in_turn(
        {
            "prefloop": lambda: timed(folder, (*PREFLOOP, "--force")),
            "dvc": lambda: timed(folder, (*DVC, "--force"), PREFLOOP_TRACKING="off"),
        },
        repeats,
    )


def unchanged(folder: Path, repeats: int) -> dict[str, Cost]:
    """A run that has nothing to do, by both. Exits if prefloop started a server for it."""
    ways = {
        "prefloop": lambda: timed(folder, PREFLOOP),
        "dvc": lambda: timed(folder, DVC, PREFLOOP_TRACKING="off"),
    }
    timed(folder, PREFLOOP)  # delivers what may still wait
    before = server_started(folder)
    found = in_turn(ways, repeats)
    if server_started(folder) != before:
        sys.exit(f"{folder}: a run without work started Prefect's server")
    return found


def server_started(folder: Path) -> float:
    """When a run of the workspace last started Prefect's server; 0 if none did."""
    log = folder / SERVER_LOG
    return log.stat().st_mtime if log.exists() else 0.0


def command_alone(folder: Path, repeats: int) -> Cost:
    """An idle stage's own command: imports, and what `Stage` does; neither DVC nor tracking."""
    ways = {"command": lambda: timed(folder, ("tasks.idle", "idle1"), PREFLOOP_TRACKING="off")}
    return in_turn(ways, repeats)["command"]
