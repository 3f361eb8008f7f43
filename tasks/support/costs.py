"""What costs are called, and their sums: of stages in a run, and of runs in a forecast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

COSTS = (
    "wall_seconds",
    "cpu_seconds",
    "gpu_seconds",
    "cpu_energy_joules",
    "gpu_energy_joules",
    "peak_rss_mib",
    "peak_gpu_mib",
)
"""In runs/<stage>.json and, after `cost/`, in MLflow. Peaks are the largest of several, the others add up."""


def cost_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The cost that a stage's record holds; a figure that it does not have is left out."""
    return {
        name: float(record[name])
        for name in COSTS
        if isinstance(record.get(name), (int, float)) and not isinstance(record[name], bool)
    }


def total(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The cost of several things together. An energy that one of them does not tell is left out: a part would
    pass for the whole."""
    each = list(costs)
    found: dict[str, float] = {}
    for name in COSTS:
        values = [cost[name] for cost in each if name in cost]
        if not values or (name == "cpu_energy_joules" and len(values) < len(each)):
            continue
        if name == "gpu_energy_joules" and len(values) < sum("gpu_seconds" in cost for cost in each):
            continue
        found[name] = max(values) if name.startswith("peak_") else round(sum(values), 3)
    return found
