"""Two processes that share trainings, and one that is held against them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prefloop.errors import StopRequested
from tests.tiny import StopAfter, StopAtCall
from tests.training import trainings
from tests.training.trainings import Weights

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


def alone(job: dict[str, Any], scratch: Path, recorder: StopAfter | None = None) -> dict[str, Any]:
    """What one process makes of a job."""
    recorder = recorder or StopAfter()
    weights = trainings.perform(job, scratch, recorder)
    return {"rows": recorder.rows, "weights": weights, "resumed_at": recorder.resumed_at}


def perform(folder: Path, jobs: list[dict[str, Any]], **joined: Any) -> list[int]:
    """Has two processes perform jobs (tests/training/ranked.py); how they ended.

    A job whose name begins with "resumed" goes on from a checkpoint of one process.

    Args:
        joined: how the processes are joined.
    """
    (folder / "jobs.json").write_text(json.dumps({"jobs": jobs, "joined": joined}))
    for job in jobs:
        if job["name"].startswith("resumed"):
            recorder = StopAtCall(7) if job["training"] == "ppo" else StopAfter(3)
            with pytest.raises(StopRequested):
                alone(job, folder / job["name"] / "scratch", recorder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.ranked", str(folder), str(rank), "2"],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in started:
        _, said = process.communicate(timeout=240)
        assert (folder / f"{jobs[-2]['name']}-0.pt").exists(), said
    return [process.returncode for process in started]


def result(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    """What a process made of a job."""
    found: dict[str, Any] = torch.load(folder / f"{name}-{rank}.pt", weights_only=True)
    return found


def assert_same_curve(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert [row.keys() for row in one] == [row.keys() for row in other]
    for row, against in zip(one, other, strict=True):
        assert row == pytest.approx(against, rel=TOLERANCE, abs=TOLERANCE)


def assert_same_weights(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < TOLERANCE


def assert_steps_of_one(folder: Path, job: dict[str, Any], scratch: Path) -> None:
    """Two processes took the steps of one, and hold the same bits."""
    expected, shared = alone(job, scratch), result(folder, job["name"])
    assert_same_curve(shared["rows"], expected["rows"])
    assert_same_weights(shared["weights"], expected["weights"])
    second = result(folder, job["name"], 1)
    assert second["rows"] == shared["rows"]
    assert all(torch.equal(shared["weights"][n], second["weights"][n]) for n in shared["weights"])


def assert_one_goes_on(folder: Path, name: str, scratch: Path) -> None:
    """One process goes on from the checkpoint of two that were stopped."""
    stopped = result(folder, f"stopped-{name}")
    assert stopped["error"].startswith("StopRequested")
    assert result(folder, f"stopped-{name}", 1)["error"] == stopped["error"]
    job = {"training": name}
    expected = alone(job, scratch)
    resumed = alone(job, folder / f"stopped-{name}" / "rank-0" / "scratch")
    assert resumed["resumed_at"] == len(stopped["rows"]) > 0
    assert_same_curve(stopped["rows"] + resumed["rows"], expected["rows"])
    assert_same_weights(resumed["weights"], expected["weights"])


def assert_two_went_on(folder: Path, name: str, done: int, scratch: Path) -> None:
    """Two processes went on from the checkpoint of one, which had done `done` steps."""
    expected, resumed = alone({"training": name}, scratch), result(folder, f"resumed-{name}")
    assert resumed["resumed_at"] == done
    assert_same_curve(resumed["rows"], expected["rows"][done:])
    assert_same_weights(resumed["weights"], expected["weights"])
