"""What a step of a training costs, by the clock of its recorder: the trainers run as stages run them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.growth.curve import Point
from prefloop.training.recorder import Recorder, Silent

WARMING = 1
"""Steps at the beginning that do not count: they allocate."""


class Stopwatch(Silent):
    """Notes wall and processor time at the end of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[float, float]] = []

    def log(self, step: int, total: int, values: Mapping[str, float]) -> None:
        super().log(step, total, values)
        self.ends.append((time.perf_counter(), time.process_time()))

    @property
    def steps(self) -> list[tuple[float, float]]:
        """Wall and processor seconds of each step that counts."""
        pairs = zip(self.ends[WARMING - 1 :], self.ends[WARMING:], strict=False)
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


@dataclass(frozen=True)
class Case:
    """One size of a series.

    Attributes:
        theory: predicted cost, in any unit.
        train: trains a few steps under a recorder.
    """

    size: float
    theory: float
    train: Callable[[Recorder], object]


def points(cases: Sequence[Case], rounds: int) -> list[Point]:
    """Runs all sizes in turn, several rounds, so that what else the machine does hits them alike; medians."""
    found: list[list[tuple[float, float]]] = [[] for _ in cases]
    for _ in range(rounds):
        for case, steps in zip(cases, found, strict=True):
            watch = Stopwatch()
            case.train(watch)
            steps += watch.steps
    return [
        Point(
            case.size,
            statistics.median(cpu for _, cpu in steps),
            statistics.median(wall for wall, _ in steps),
            case.theory,
        )
        for case, steps in zip(cases, found, strict=True)
    ]
