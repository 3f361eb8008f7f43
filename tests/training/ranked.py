"""One of several processes that share trainings: `python -m tests.training.ranked FOLDER RANK COUNT`.

FOLDER/jobs.json lists the trainings; what each gave is written to FOLDER/JOB-RANK.pt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from prefloop.errors import StopRequested
from prefloop.training.distribution import joined, meeting
from tests import tiny
from tests.tiny import StopAfter
from tests.training.trainings import TRAININGS


class Fallible(StopAfter):
    """Kills its own process after `steps` steps, as a fault of the machine would."""

    def stop_requested(self) -> bool:
        if super().stop_requested():
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def perform(job: dict[str, Any], folder: Path, rank: int) -> dict[str, Any]:
    """Curve and final weights of one training, or why it stopped."""
    train, changes = TRAININGS[job["training"]], job.get("changes", {})
    recorder = StopAfter(job.get("stop", 0))
    if job.get("fails") == rank:
        recorder = Fallible(2)
    try:
        weights = train(place(job, folder, rank), recorder, **changes)
    except StopRequested as stopped:
        return {"rows": recorder.rows, "stopped": str(stopped)}
    return {"rows": recorder.rows, "weights": weights, "resumed_at": recorder.resumed_at}


def place(job: dict[str, Any], folder: Path, rank: int) -> Path:
    """The job's scratch folder, beside which each process has a trunk for reward models of its own."""
    return folder / job["name"] / f"rank-{rank}" / "scratch"


def prepare(job: dict[str, Any], folder: Path, rank: int) -> None:
    """Makes those folders: in a group of processes transformers lets rank 0 alone save a model."""
    shared = folder / job.get("scratch", job["name"]) / "scratch"
    shared.mkdir(parents=True, exist_ok=True)
    scratch = place(job, folder, rank)
    tiny.saved(scratch.parent / "trunk-16")
    scratch.symlink_to(shared)


def main() -> None:
    """Performs all jobs in one group of processes."""
    folder, rank, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    jobs = json.loads((folder / "jobs.json").read_text())
    torch.set_num_threads(1)
    for job in jobs:
        prepare(job, folder, rank)
    with joined(rank, count, meeting(folder / "meeting", count), timeout_seconds=60):
        for job in jobs:
            torch.save(perform(job, folder, rank), folder / f"{job['name']}-{rank}.pt")


if __name__ == "__main__":
    main()
