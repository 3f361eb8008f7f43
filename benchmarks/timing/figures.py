"""From recordings of either side to figures: medians and spread, whether losses agree, what is missed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.alongside.table import TOLERANCE, relative
from benchmarks.timing.sizes import GPU_SIZES, WARM_UP

BF16_TOLERANCE = 2e-2
"""Losses computed in bf16 are compared to this; to `TOLERANCE` in float32, where they are computed so."""

TARGETS = {
    ("sft", "7m"): 4.0,
    ("dpo", "7m"): 5.0,
    ("reward", "7m"): 2.5,
    ("ppo", "7m"): 3.0,
    ("grpo", "7m"): 3.0,
    ("generate", "1m"): 3.0,
    ("generate", "7m"): 3.0,
    ("generate", "30m"): 3.0,
}
"""How many times as fast as the tuned peer; 2 elsewhere."""
UTILISATION = {("sft", "30m"): 0.5, ("dpo", "30m"): 0.5, ("sft", "0.5b"): 0.45, ("dpo", "0.5b"): 0.45}
"""Share of the measured GEMM rate."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """NaN of no values."""
        if not values:
            return cls(math.nan, math.nan, math.nan)
        low, median, high = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))


@dataclass
class Timed:
    """What one side's processes of a row recorded, one a round (see peers/clock.py).

    Attributes:
        recordings: as `Clock.as_dict` gives them, or {"error": ...}. walls: seconds of each whole process.
    """

    recordings: list[dict[str, Any]] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """Why it has no figures; "" where it has."""
        if not self.recordings:
            return "was not run"
        errors = [str(one["error"]) for one in self.recordings if "error" in one]
        return errors[0] if errors else ""

    def spread(self, what: str = "seconds") -> Spread:
        """Of the steps after the warm-up, over all rounds (seconds a step); `busy`: of processors.

        An interval ends a step, so that the first step has none.
        """
        return Spread.of([x for one in self.recordings for x in one[what][WARM_UP - 1 :]])

    @property
    def wall(self) -> float:
        """Median of whole processes (seconds): imports, data, precomputed log-probs and all steps."""
        return Spread.of(self.walls).median

    @property
    def memory(self) -> float:
        """Peak of the process, or on a GPU of what torch held there (bytes): the most of all rounds."""
        found = [one["memory"] for one in self.recordings]
        return max(one.get("device_peak", one.get("peak", math.nan)) for one in found)

    @property
    def growth(self) -> float:
        """Peak over what there was before the training (bytes)."""
        return max(one["memory"].get("growth", math.nan) for one in self.recordings)

    @property
    def sampled(self) -> float:
        """Tokens sampled a step, mean."""
        found = [x for one in self.recordings for x in one["sampled"][WARM_UP:]]
        return sum(found) / len(found) if found else 0.0


@dataclass
class Result:
    """One row: a method at a size and a length, on all sides.

    Attributes:
        ours, tuned, plain: prefloop, the tuned peer, the peer as it comes.
        steps: that a training should have. precision: of the run.
        tokens: real ones a step. flops: a step needs of prefloop (0: not counted). gemm: operations a second.
        compared: how far losses of given rollouts are apart (methods that sample), and `problem` if they are.
        load: of the machine, before and after.
    """

    method: str
    size: str
    lengths: str
    precision: str
    steps: int
    ours: Timed = field(default_factory=Timed)
    tuned: Timed = field(default_factory=Timed)
    plain: Timed = field(default_factory=Timed)
    tokens: float = 0.0
    flops: float = 0.0
    gemm: float = math.nan
    bandwidth: float = math.nan
    bytes_read: float = 0.0
    compared: float | None = None
    problem: str = ""
    load: tuple[float, float] = (0.0, 0.0)

    @property
    def difference(self) -> float:
        """Largest relative difference of losses between prefloop and the peer, over all steps and rounds."""
        if self.compared is not None:
            return self.compared
        return loss_difference(self.ours, [self.tuned, self.plain])

    @property
    def fails(self) -> str:
        """Why the row does not count; "" where it does."""
        names = "prefloop", "the tuned peer", "the peer as it comes"
        for name, side in zip(names, (self.ours, self.tuned, self.plain), strict=True):
            if side.recordings and side.problem:
                return f"{name}: {side.problem}"
            for one in side.recordings:
                if self.method != "generate" and len(one["seconds"]) != self.steps - 1:
                    return f"{name} took {len(one['seconds']) + 1} steps instead of {self.steps}"
        if self.problem or not (self.ours.recordings and self.tuned.recordings):
            return self.problem or "a side was not run"
        if self.method == "generate":
            return ""
        limit = BF16_TOLERANCE if self.precision == "bf16" and self.compared is None else TOLERANCE
        if not self.difference <= limit:
            return f"losses differ by {self.difference:.1e}"
        return ""

    def ratio(self, peer: Timed, what: str = "seconds") -> float:
        """How many times as fast prefloop is: of medians; of methods that sample for as many tokens.

        Samples differ, and so do their lengths by chance: a side that sampled less did less.
        """
        if not peer.recordings or peer.problem:
            return math.nan
        share = self.ours.sampled / peer.sampled if peer.sampled and self.ours.sampled else 1.0
        return peer.spread(what).median / self.ours.spread(what).median * share

    @property
    def target(self) -> float:
        return TARGETS.get((self.method, self.size), 2.0)

    @property
    def utilisation(self) -> float:
        """Model operations a second over the GEMM rate."""
        return self.flops / self.ours.spread().median / self.gemm if self.flops else math.nan

    @property
    def missed(self) -> list[str]:
        """Targets that the row misses, in words."""
        found = []
        if not self.ratio(self.tuned) >= self.target:
            found.append(f"below {self.target:g}x")
        # Of generate the table shows it, without a target: it goes with how many rows are sampled at once,
        # 256 here, where the fastest batch of the peer may be of 64.
        if self.method != "generate" and not self.ours.memory <= self.tuned.memory:
            found.append("more memory than TRL")
        wanted = UTILISATION.get((self.method, self.size))
        if wanted and not self.utilisation >= wanted:
            found.append(f"below {wanted:.0%} of GEMM")
        if self.bytes_read and self.size in GPU_SIZES:
            share = self.bytes_read / self.ours.spread().median / self.bandwidth
            if share < 0.6:
                found.append(f"{share:.0%} of bandwidth, below 60 %")
        return found

    @property
    def verdict(self) -> str:
        if self.fails:
            return f"FAILS: {self.fails}"
        return ", ".join(self.missed) or "meets its targets"


def loss_difference(ours: Timed, peers: Sequence[Timed]) -> float:
    """Largest relative difference between the losses of any two rounds' steps; NaN if steps are missing."""
    worst = 0.0
    for peer in peers:
        for one, other in zip(ours.recordings, peer.recordings, strict=False):
            if len(one["losses"]) != len(other["losses"]) or not one["losses"]:
                return math.nan
            difference = relative(one["losses"], other["losses"])
            if not difference <= worst:
                worst = difference
    return worst
