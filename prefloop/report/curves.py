"""Learning curves, a small chart a metric; the ones that matter first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from prefloop.report.charts import Line, line_chart
from prefloop.report.material import Curve

_LEADING: Final = (
    "loss",
    "accuracy",
    "score",
    "objective/kl",
    "entropy",
    "length",
    "ended",
    "unique",
    "margin",
    "chosen_reward",
    "select/score",
    "select/kl",
)
"""Metrics shown at once, in this order; the others wait behind a fold."""


@dataclass(frozen=True)
class Panel:
    """One metric of one stage."""

    name: str
    chart: Markup


@dataclass(frozen=True)
class StageCurves:
    """The curves of one stage: the leading ones and the others."""

    stage: str
    steps: int
    leading: tuple[Panel, ...]
    others: tuple[Panel, ...]


def stage_curves(curves: Mapping[str, Curve], colours: Mapping[str, str]) -> list[StageCurves]:
    """Charts of every stage that logged a curve of more than one point."""
    found = []
    for stage, rows in curves.items():
        colour = colours.get(stage, "c7")
        names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
        panels = {name: panel for name in names if (panel := _panel(stage, name, rows, colour))}
        leading = tuple(panels[name] for name in _LEADING if name in panels)
        others = tuple(panels[name] for name in sorted(panels) if name not in _LEADING)
        if panels:
            found.append(StageCurves(stage, int(rows[-1]["step"]), leading, others))
    return found


def _panel(stage: str, name: str, rows: Curve, colour: str) -> Panel | None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if len(points) < 2:
        return None
    line = Line(name, [x for x, _ in points], [y for _, y in points], colour)
    return Panel(name, line_chart([line], f"{stage}: {name}"))
