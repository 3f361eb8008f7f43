"""Commands timed in turn, A B A B, so that what else the machine does hits them alike."""

from __future__ import annotations

import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.workspaces import environment
from prefloop.files import read_json

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


def forced(folder: Path, stages: int, repeats: int) -> tuple[dict[str, Cost], dict[str, float]]:
    """Every stage of a chain run: by prefloop, by bare DVC without tracking; and what lay between two ends.

    Returns:
        By way: what a run cost, and `spacing` (NaN for a single stage); medians.
    """
    apart: dict[str, list[float]] = {"prefloop": [], "dvc": []}

    def run(way: str, command: Sequence[str], **extra: str) -> Cost:
        cost = timed(folder, (*command, "--force"), **extra)
        apart[way].append(spacing(folder, stages))
        return cost

    ways = {
        "prefloop": lambda: run("prefloop", PREFLOOP),
        "dvc": lambda: run("dvc", DVC, PREFLOOP_TRACKING="off"),
    }
    costs = in_turn(ways, repeats)
    return costs, {way: statistics.median(values) for way, values in apart.items()}


def spacing(folder: Path, stages: int) -> float:
    """From one stage's end to the next one's, on average over a chain, by their records (seconds)."""
    if stages < 2:
        return math.nan
    ends = [read_json(folder / f"runs/idle{number}.json")["end"] for number in (1, stages)]
    first, last = map(datetime.fromisoformat, ends)
    return (last - first).total_seconds() / (stages - 1)


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
