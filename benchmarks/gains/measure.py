"""A piece of work with a technique and without it, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Work = Callable[[], object]


@dataclass(frozen=True)
class Gain:
    """Median processor milliseconds with a technique and without it, and the quartiles of their ratio."""

    technique: str
    kept: bool
    with_it: float
    without: float
    low: float
    ratio: float
    high: float


def compare(technique: str, with_it: Work, without: Work, rounds: int, *, kept: bool = True) -> Gain:
    """Times both ways in turn, after a first time that does not count."""
    with_it(), without()
    return gain_of(technique, [(busy(with_it), busy(without)) for _ in range(rounds)], kept=kept)


def gain_of(technique: str, pairs: Sequence[tuple[float, float]], *, kept: bool = True) -> Gain:
    """What pairs of times, with a technique and without it, come to."""
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Gain(technique, kept, ours, theirs, low, middle, high)


def busy(work: Work) -> float:
    """Processor milliseconds of a piece of work."""
    before = time.process_time()
    work()
    return 1000 * (time.process_time() - before)
