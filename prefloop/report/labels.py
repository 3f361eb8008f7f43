"""Names at the right of a chart: apart from one another, each with a thin line to what it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from prefloop.report.svg import element, polyline

LABEL_GAP: Final = 14.0
"""Least distance between two labels (pixels)."""
_CHARACTER: Final = 7.2
"""Width of a character of a label (pixels), rather too much than too little."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a label names: a place (pixels); `colour` is a CSS class."""

    label: str
    x: float
    y: float
    colour: str


def room_for(labels: Sequence[str]) -> float:
    """Pixels that the longest of some labels takes."""
    return _CHARACTER * max(map(len, labels), default=0)


def at_margin(named: Sequence[Named], right: float, top: float, bottom: float) -> list[Markup]:
    """The labels right of `right`, so that no line runs through a name; a thin line leads there."""
    heights = spread([one.y for one in named], top, bottom)
    parts = []
    for one, y in zip(named, heights, strict=True):
        leader = polyline([one.x + 5, right + 4, right + 10], [one.y, y, y], class_="leader")
        name = element("text", one.label, x=right + 13, y=y + 4, class_="waylabel")
        parts.append(element("g", leader, name, class_=one.colour))
    return parts


def spread(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights of labels (pixels) near the ones wanted, in their order, far enough apart to be read."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    floor = top
    for i in order:
        placed[i] = max(heights[i], floor)
        floor = placed[i] + LABEL_GAP
    ceiling = bottom
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - LABEL_GAP
    return placed
