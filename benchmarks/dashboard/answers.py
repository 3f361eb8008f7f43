"""What people ask of a store with many runs, and how long each answer takes."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.overhead.turns import timed
from benchmarks.queueing.servers import analyse, mlflow
from benchmarks.queueing.workspaces import make_workspace
from benchmarks.workspaces import clone_project, environment

LIMIT = 1.0
"""What an answer may take at most (seconds)."""
STATUS, COMPARE = ("flows.cli.main", "status"), ("flows.cli.main", "compare", "previous", "latest")


@dataclass(frozen=True)
class Answers:
    """Seconds of each time that each question was asked.

    Attributes:
        runs: in the store. filled: what writing them took (seconds).
        asked: question -> seconds of each time.
        commands: whole commands, Python's start and imports included -> seconds of each time.
    """

    runs: int
    filled: float
    asked: dict[str, list[float]] = field(default_factory=dict)
    commands: dict[str, list[float]] = field(default_factory=dict)

    @property
    def slow(self) -> dict[str, float]:
        """Questions whose answer took too long at least once."""
        return {name: max(times) for name, times in self.asked.items() if max(times) >= LIMIT}

    def table(self) -> str:
        """Markdown."""
        lines = ["| asked | median, s | worst, s |", "| --- | ---: | ---: |"]
        for name, times in [*self.asked.items(), *self.commands.items()]:
            lines.append(f"| {name} | {statistics.median(times):.2f} | {max(times):.2f} |")
        return "\n".join(lines)

    def verdict(self) -> str:
        """Whether each answer came in time."""
        if not self.slow:
            return f"Each of the {len(self.asked)} queries was answered in less than {LIMIT:g} s each time."
        shown = ", ".join(f"{name} ({worst:.2f} s)" for name, worst in self.slow.items())
        return f"{LIMIT:g} s and more: {shown}."


def dashboard(folder: Path, runs: int, repeats: int, database: str) -> Answers:
    """Fills a store and asks.

    Args:
        folder: scratch.
        database: URL of MLflow's database; empty takes SQLite.
    """
    place = folder / "dashboard"
    place.mkdir()
    (place / "mlflow").mkdir()
    uri = database or f"sqlite:///{place / 'mlflow' / 'mlflow.db'}"
    print(f"{runs} runs into MLflow", file=sys.stderr, flush=True)
    writer = place / "writer"
    writer.mkdir()
    clone_project(writer)
    filled = ask(writer, "benchmarks.dashboard.fill", str(runs), MLFLOW_TRACKING_URI=uri)
    if database:
        analyse(database)
    with mlflow(place / "mlflow", uri) as (server, _):
        words = (server.address, str(repeats), filled["first"], filled["last"])
        asked = ask(writer, "benchmarks.dashboard.ask", *words, MLFLOW_TRACKING_URI=server.address)
        commands = whole_commands(place, writer, repeats, server.address, filled)
    return Answers(filled["runs"], filled["seconds"], asked, commands)


def whole_commands(
    place: Path, writer: Path, repeats: int, address: str, filled: dict[str, Any]
) -> dict[str, list[float]]:
    """`prefloop status` and `compare` in a workspace without runs, and in one with a record of each."""
    empty, full = place / "empty", place / "full"
    make_workspace(empty)
    shutil.copytree(empty, full, symlinks=True)
    shutil.copytree(writer / ".prefloop/pipelines", full / ".prefloop/pipelines")
    count = len(list((full / ".prefloop/pipelines").glob("*.json")))
    elsewhere = ("flows.cli.main", "compare", filled["first"], filled["last"])
    ways = {
        "`prefloop status`, no run before": (empty, STATUS),
        f"`prefloop status`, {count} pipeline runs before": (full, STATUS),
        f"`prefloop compare previous latest`, of {count}": (full, COMPARE),
        "`prefloop compare` of two runs that MLflow alone knows": (empty, elsewhere),
    }
    return {
        name: [timed(folder, words, MLFLOW_TRACKING_URI=address).wall for _ in range(repeats)]
        for name, (folder, words) in ways.items()
    }


def ask(folder: Path, module: str, *words: str, **variables: str) -> dict[str, Any]:
    """What a module prints as JSON on its last line, run in a workspace; exits where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{module} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
