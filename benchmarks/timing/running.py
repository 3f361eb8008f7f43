"""A row's processes, side after side, round after round."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import parity
from benchmarks.alongside import on_policy
from benchmarks.alongside.environments import ROOT, answers, ask, environment
from benchmarks.alongside.material import Material
from benchmarks.alongside.side import Side
from benchmarks.alongside.table import Row, compare
from benchmarks.timing import figures, generation, jobs, machine, ours, work
from benchmarks.timing.sizes import SAMPLING, Lengths, Size
from prefloop.training.environment import Environment

TRL = {"ppo": "1.12.0"}
COMPARED_STEPS = 4
"""Optimiser steps of a comparison on given rollouts at the timed size."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
        environment: device and precision, as `compute.precision: auto` chooses them.
        threads: of every process. rounds: times that each side runs. steps: of a training; 0 is the size's.
        plain: run the peer as it comes, too.
    """

    environment: Environment
    threads: int
    rounds: int
    steps: int = 0
    plain: bool = True

    @property
    def variables(self) -> dict[str, str]:
        """What a peer's environment has to say beside its arguments: TRL 1.12.0's PPO reads it alone."""
        return {"ACCELERATE_MIXED_PRECISION": "bf16"} if self.environment.precision == "bf16" else {}


def time_row(
    method: str, size: Size, lengths: Lengths, material: Material, scratch: Path, asked: Asked
) -> figures.Result:
    """Runs all sides of a row in turn, A B C A B C; what fails is in the result."""
    precision = asked.environment.precision
    if method == "generate":
        result = figures.Result(method, size.name, lengths.name, precision, 0)
        job = generation.job_of(material, lengths, asked.environment, scratch, asked.threads)
        sides = generation.sides(job, scratch, asked.threads, plain=asked.plain)
    else:
        steps = asked.steps or size.steps_of(method)
        side = Side(
            Row(method, method),
            material,
            scratch,
            jobs.section(method, lengths, steps),
            precision,
            asked.environment.device,
        )
        result = figures.Result(method, size.name, lengths.name, precision, steps)
        result.tokens, result.flops = work.per_step(side)
        sides = trainings(side, lengths, asked)
    with weighed(result, asked):
        if method in SAMPLING:
            result.compared, result.problem = on_given_rollouts(method, lengths, material, scratch)
        elif method != "generate" and precision != "fp32":
            result.compared, result.problem = in_float32(side, lengths, asked)
        for number in range(asked.rounds):
            for name, run in sides.items():
                timed: figures.Timed = getattr(result, name)
                if timed.problem and timed.recordings:
                    continue  # it will not get better
                started = time.perf_counter()
                try:
                    recording = next(iter(run()["answers"].values()))
                except RuntimeError as error:
                    recording = {"error": str(error)}
                timed.walls.append(time.perf_counter() - started)
                timed.recordings.append(recording)
                print(f"  round {number + 1}: {name}", file=sys.stderr, flush=True)
        if method == "generate" and not result.fails:
            generation.conclude(result, job, asked.environment.device)
    return result


Runs = dict[str, Callable[[], dict[str, Any]]]
"""Sides of a row by their names in a `Result`, in the order in which they run."""


def trainings(side: Side, lengths: Lengths, asked: Asked) -> Runs:
    """One process each."""
    own = ours.job_of(side, asked.threads, lengths.completion[2])
    command = [sys.executable, "-m", "benchmarks.timing.ours"]
    python = environment("trl", TRL.get(side.row.method, "1.16.0"))
    script = {"ppo": "timed_ppo", "grpo": "timed_on_policy", "rloo": "timed_on_policy"}
    peer = script.get(side.row.method, "trl_offline")

    def trl(tuned: bool) -> dict[str, Any]:
        job = jobs.timed(side, lengths, tuned=tuned)
        return ask(python, peer, [job], side.scratch, threads=asked.threads, **asked.variables)

    found: Runs = {
        "ours": lambda: answers(command, "ours", [own], side.scratch, ROOT, asked.threads, {}),
        "tuned": lambda: trl(True),
    }
    return found | ({"plain": lambda: trl(False)} if asked.plain else {})


def on_given_rollouts(method: str, lengths: Lengths, material: Material, scratch: Path) -> tuple[float, str]:
    """Both sides learn from the same rollouts, in float32: how far losses are apart, and what is wrong.

    The largest difference of losses or, where a row's losses differ by decision, of gradient norms.
    """
    row = jobs.compared(method, lengths)
    script, version = ("trl_ppo", "1.12.0") if method == "ppo" else ("trl_on_policy", "1.16.0")
    steps = COMPARED_STEPS
    _, found = parity.together([row], on_policy, material, scratch / "compared", script, version, steps)
    outcome = compare(*found[0], steps)
    wrong = "" if outcome.passes else f"{row.name}: {outcome.problem or f'{outcome.loss:.1e}'}"
    return (outcome.norm if row.differs == "loss" else outcome.loss), wrong


def in_float32(side: Side, lengths: Lengths, asked: Asked) -> tuple[float, str]:
    """The same for trainings on fixed data where what is timed is not in float32: a few steps that are."""
    few = {**side.section, "steps": COMPARED_STEPS}
    exact = Side(side.row, side.material, side.scratch, few, "fp32", side.device)
    found = []
    # Accelerate's variable would have the peer compute in bf16 whatever its arguments say.
    once = Asked(replace(asked.environment, precision="fp32"), asked.threads, 1, plain=False)
    for run in trainings(exact, lengths, once).values():
        recording = next(iter(run()["answers"].values()))
        if "error" in recording:
            return float("nan"), str(recording["error"])
        found.append(figures.Timed([recording]))
    difference = figures.loss_difference(found[0], found[1:])
    return difference, "" if difference <= 1e-4 else f"losses differ by {difference:.1e} in float32"


@contextmanager
def weighed(result: figures.Result, asked: Asked) -> Iterator[None]:
    """The machine's load and rates around a row; of two measurements the better one."""
    device = asked.environment.device

    def measured() -> tuple[float, float]:
        return machine.gemm_rate(asked.environment, asked.threads), machine.bandwidth(device, asked.threads)

    before, load = measured(), os.getloadavg()[0]
    yield
    result.load = load, os.getloadavg()[0]
    after = measured()
    result.gemm, result.bandwidth = max(before[0], after[0]), max(before[1], after[1])
