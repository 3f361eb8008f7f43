"""A piece of work with a technique and without it, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Work = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Gain:
    """Median milliseconds with a technique and without it, and the quartiles of their ratio.

    Attributes:
        use: "kept", "dropped", or "a setting" where the user chooses.
    """

    technique: str
    use: str
    with_it: float
    without: float
    low: float
    ratio: float
    high: float


def compare(
    technique: str,
    with_it: Work,
    without: Work,
    rounds: int,
    *,
    use: str = "kept",
    clock: Clock = time.process_time,
) -> Gain:
    """Times both ways in turn, after a first time that does not count.

    Args:
        clock: seconds; `time.perf_counter` where threads are what is compared.
    """
    with_it(), without()
    pairs = [(spent(with_it, clock), spent(without, clock)) for _ in range(rounds)]
    return gain_of(technique, pairs, use=use)


def gain_of(technique: str, pairs: Sequence[tuple[float, float]], *, use: str = "kept") -> Gain:
    """What pairs of times, with a technique and without it, come to."""
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Gain(technique, use, ours, theirs, low, middle, high)


def spent(work: Work, clock: Clock = time.process_time) -> float:
    """Milliseconds that a piece of work takes by a clock; processor time without another."""
    before = clock()
    work()
    return 1000 * (clock() - before)
