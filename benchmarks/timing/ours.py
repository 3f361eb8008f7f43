"""prefloop's side of a timed training, a process of its own as a stage is one.

    python -m benchmarks.timing.ours JOBS.json ANSWERS.json

It trains with the trainers, the loop and the recorder's protocol that the stages use, under the settings that
they apply to their process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.alongside import offline
from benchmarks.alongside.material import Material
from benchmarks.alongside.side import Side
from benchmarks.alongside.table import Row
from benchmarks.peers.clock import Clock
from benchmarks.peers.recording import answer_jobs
from benchmarks.timing import generation, sampled
from benchmarks.timing.sizes import SAMPLING
from prefloop.config.compute import ComputeConfig
from prefloop.training.environment import apply, resolve


def train(job: dict[str, Any]) -> Clock:
    """Trains, or samples, as the job says."""
    environment = resolve(ComputeConfig(precision=job["precision"]))
    apply(environment, job["threads"])
    if job["method"] == "generate":
        return generation.run(job, environment.device)
    clock = Clock()
    side = Side(
        Row(job["name"], job["method"]),
        Material(Path(job["policy"]), Path(job["reward"]), job["conversations"]),
        Path(job["scratch"]),
        job["section"],
        job["precision"],
        environment.device,
    )
    if job["method"] in SAMPLING:
        sampled.run(side, job["longest"], clock)
    else:
        offline.run(side, clock)
    return clock


def job_of(side: Side, threads: int, longest: int) -> dict[str, Any]:
    """What `train` needs, as JSON."""
    return {
        "name": side.row.name,
        "method": side.row.method,
        "policy": str(side.material.policy),
        "reward": str(side.material.reward),
        "conversations": side.material.conversations,
        "scratch": str(side.scratch),
        "section": side.section,
        "precision": side.precision,
        "threads": threads,
        "longest": longest,
    }


if __name__ == "__main__":
    answer_jobs(train, {})
