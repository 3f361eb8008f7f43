"""Costs by size, the exponent with which they grow, and what theory says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

TOLERANCE = 0.2
"""How far above theory's exponent a measured one may lie. Below it lies every cost with a fixed part."""
SETTLED = 300_000
"""Rows from which memory is judged: validation holds pieces of 100,000 rows, and grows until one is full."""


@dataclass(frozen=True)
class Point:
    """What one size costs.

    Attributes:
        size: in the series' unit. cpu, wall: medians (seconds).
        theory: cost that theory predicts, in any unit, the same at all points of a series.
        peak: largest resident memory of the process (MiB); 0 where it was not measured.
    """

    size: float
    cpu: float
    wall: float
    theory: float
    peak: float = 0.0


@dataclass(frozen=True)
class Curve:
    """A series of growing sizes.

    Attributes:
        name: what is done. unit: of the sizes. why: what theory says, in words.
        row_bytes: mean size of a row on disk where sizes are rows, which bounds the memory that one may
            cost; 0 elsewhere.
    """

    name: str
    unit: str
    why: str
    points: Sequence[Point]
    row_bytes: float = 0.0

    @property
    def upper(self) -> Sequence[Point]:
        """The upper half of the points, at least three: small sizes show what is fixed."""
        return self.points[-max(3, (len(self.points) + 1) // 2) :]

    @property
    def measured(self) -> float:
        """Exponent of the processor time."""
        return exponent([p.size for p in self.upper], [p.cpu for p in self.upper])

    @property
    def predicted(self) -> float:
        """Exponent of theory's cost between the same sizes."""
        return exponent([p.size for p in self.upper], [p.theory for p in self.upper])

    @property
    def bytes_a_row(self) -> float:
        """Memory that each further row costs, between the two largest sizes (bytes)."""
        if len(self.points) < 2 or not self.row_bytes:
            return 0.0
        below, above = self.points[-2:]
        return max(above.peak - below.peak, 0.0) * 2**20 / (above.size - below.size)

    @property
    def troubles(self) -> list[str]:
        """What is not as theory says; a series too short for an exponent has none."""
        found = []
        if len(self.points) > 1 and self.measured > self.predicted + TOLERANCE:
            most = self.predicted + TOLERANCE
            found.append(f"{self.name}: exponent {self.measured:.2f}, at most {most:.2f} expected")
        settled = bool(self.row_bytes) and self.points[-1].size >= SETTLED
        if settled and self.bytes_a_row > self.row_bytes / 2:
            found.append(
                f"{self.name}: {self.bytes_a_row:.0f} bytes of memory a row that has {self.row_bytes:.0f}"
            )
        return found

    def as_values(self) -> dict[str, Any]:
        """For JSON: points, exponents, troubles."""
        return {
            **asdict(self),
            "exponent": self.measured if len(self.points) > 1 else None,
            "theory": self.predicted if len(self.points) > 1 else None,
            "bytes_a_row": self.bytes_a_row or None,
            "troubles": self.troubles,
        }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the least-squares line through (log size, log cost); NaN for fewer than two sizes."""
    x, y = [math.log(size) for size in sizes], [math.log(max(cost, 1e-9)) for cost in costs]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mx) ** 2 for a in x)
    if not spread:
        return math.nan
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / spread


def tables(curves: Sequence[Curve]) -> str:
    """Markdown: each point, then each exponent beside theory's."""
    lines = ["| series | size | CPU (s) | wall (s) | CPU a unit | peak (MiB) |", "| --- |" + " ---: |" * 5]
    for curve in curves:
        for point in curve.points:
            peak = f"{point.peak:.0f}" if point.peak else ""
            lines.append(
                f"| {curve.name} | {point.size:,.0f} {curve.unit} | {point.cpu:.3f} | {point.wall:.3f} "
                f"| {_scaled(point.cpu / point.size)} | {peak} |"
            )
    lines += ["", "| series | exponent | theory | bytes a row | verdict | theory says |"]
    lines += ["| --- | ---: | ---: | ---: | --- | --- |"]
    for curve in curves:
        if len(curve.points) < 2:
            continue
        memory = f"{curve.bytes_a_row:.0f} of {curve.row_bytes:.0f}" if curve.row_bytes else ""
        lines.append(
            f"| {curve.name} | {curve.measured:.2f} | {curve.predicted:.2f} | {memory} | {_verdict(curve)} "
            f"| {curve.why} |"
        )
    return "\n".join(lines)


def _verdict(curve: Curve) -> str:
    if curve.troubles:
        return "MISSED"
    return "below theory" if curve.measured < curve.predicted - TOLERANCE else "as theory says"


def _scaled(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.1f} {unit}"
    return f"{seconds * 1e9:.0f} ns"
