"""The report's charts, each from plain figures to inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from prefloop.report.formats import signed
from prefloop.report.labels import Named, at_margin, room_for
from prefloop.report.svg import Scale, element, figure, horizontal_axis, polyline, short, vertical_axis

_POINTS: Final = 120
"""Curves are averaged down to this many points, so that a long training stays a small file."""
_PATH_POINTS: Final = 24
"""And the paths over KL to this many, for both their axes are noisy."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its interval; `colour` is a CSS class."""

    label: str
    mean: float
    low: float
    high: float
    colour: str


@dataclass(frozen=True, slots=True)
class Line:
    """A curve; xs and ys are equally long."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str


@dataclass(frozen=True, slots=True)
class Place:
    """A policy in the plane of KL and score: what the reward model and the judge see of its gain."""

    label: str
    kl: float
    reward: float
    judge: float
    colour: str


def interval_chart(
    rows: Sequence[Interval],
    title: str,
    *,
    marks: Sequence[tuple[float, str]] = (),
    span: Sequence[float] = (),
) -> Markup:
    """One row a policy, a dot at the mean and a bar over the interval.

    Args:
        marks: dashed reference lines (value, label).
        span: further values that the axis must reach, so that charts can share one.
    """
    width, right, row_height = 340.0, 290.0, 25.0
    left = max(50.0, 8.0 + room_for([row.label for row in rows]))
    top = 8.0 + 14.0 * len(marks)
    bottom = top + row_height * len(rows)
    values = [*span, *(value for value, _ in marks)]
    for row in rows:
        values += [row.low, row.high]
    scale = Scale.over(values, left, right)
    parts = horizontal_axis(scale, bottom, top)
    for number, (value, label) in enumerate(marks):
        x, y = scale(value), 12.0 + 14.0 * number
        anchor = "end" if x > (left + right) / 2 else "start"
        parts.append(element("line", x1=x, x2=x, y1=y - 4, y2=bottom, class_="mark"))
        offset = -5 if anchor == "end" else 5
        parts.append(element("text", label, x=x + offset, y=y, class_="marklabel", text_anchor=anchor))
    for number, row in enumerate(rows):
        y = top + row_height * (number + 0.5)
        shown = f"{row.label}: {row.mean:.3f}, 95 % interval {row.low:.3f} to {row.high:.3f}"
        parts += [
            element("text", row.label, x=left - 8, y=y + 4, class_="label", text_anchor="end"),
            element(
                "g",
                element("title", shown),
                element("line", x1=scale(row.low), x2=scale(row.high), y1=y, y2=y, class_="bar"),
                element("circle", cx=scale(row.mean), cy=y, r=5, class_="dot"),
                class_=row.colour,
            ),
            element("text", signed(row.mean), x=width - 4, y=y + 4, class_="value", text_anchor="end"),
        ]
    return figure(width, bottom + 22, title, parts)


def line_chart(lines: Sequence[Line], title: str, *, x_label: str = "step") -> Markup:
    """Curves over steps: the averaged curve."""
    width, height, left, right, top = 260.0, 158.0, 40.0, 253.0, 8.0
    bottom = height - 34
    thinned = [Line(line.label, *thin(line.xs, line.ys), line.colour) for line in lines]
    xs = Scale.over([x for line in thinned for x in line.xs], left, right, margin=0.0)
    ys = Scale.over([y for line in thinned for y in line.ys], bottom, top)
    parts = vertical_axis(ys, left, right) + _step_axis(xs, bottom, x_label)
    for line in thinned:
        last = (
            f"{line.label}: {short(line.ys[-1])} at {x_label} {short(line.xs[-1])}" if line.ys else line.label
        )
        points = [xs(x) for x in line.xs], [ys(y) for y in line.ys]
        parts.append(
            element("g", element("title", last), polyline(*points, class_="curve"), class_=line.colour)
        )
    return figure(width, height, title, parts)


def _step_axis(scale: Scale, bottom: float, label: str) -> list[Markup]:
    parts = [element("line", x1=scale.start, x2=scale.stop, y1=bottom, y2=bottom, class_="baseline")]
    for tick in scale.ticks(4):
        x = scale(tick)
        parts.append(element("text", short(tick), x=x, y=bottom + 14, class_="tick", text_anchor="middle"))
    middle = (scale.start + scale.stop) / 2
    parts.append(element("text", label, x=middle, y=bottom + 28, class_="axis", text_anchor="middle"))
    return parts


def gap_chart(
    places: Sequence[Place], paths: Sequence[Line], title: str, *, budget: float | None = None
) -> Markup:
    """Gain over SFT against KL: filled dots as the reward model sees it, rings as the judge does.

    The stem between the two is the hacking gap. `paths` are the ways that policies took in training, by the
    reward model; `budget` is the KL that promotion allows.
    """
    width, height, left, top = 640.0, 330.0, 44.0, 14.0
    right, bottom = width - 16 - room_for([place.label for place in places]), height - 42
    kls = [0.0, *(p.kl for p in places), *(x for line in paths for x in line.xs)]
    if budget is not None and budget <= 1.6 * max(kls):
        kls.append(budget)
    gains = [
        0.0,
        *(p.reward for p in places),
        *(p.judge for p in places),
        *(y for line in paths for y in line.ys),
    ]
    xs, ys = Scale.over(kls, left, right), Scale.over(gains, bottom, top)
    parts = vertical_axis(ys, left, right, count=6)
    parts += horizontal_axis(xs, bottom, top, label="KL to SFT (nats a response)")
    if budget is not None and budget <= xs.high:
        x = xs(budget)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="mark"))
        parts.append(element("text", "budget", x=x - 5, y=top + 10, class_="marklabel", text_anchor="end"))
    for path in paths:
        kl, gain = thin(path.xs, path.ys, _PATH_POINTS)
        points = [xs(x) for x in kl], [ys(y) for y in gain]
        parts.append(
            element("g", element("title", path.label), polyline(*points, class_="path"), class_=path.colour)
        )
    for place in places:
        x, by_reward, by_judge = xs(place.kl), ys(place.reward), ys(place.judge)
        shown = (
            f"{place.label}: {place.kl:.2f} nats; {place.reward:+.2f} by the reward model, "
            f"{place.judge:+.2f} by the judge"
        )
        parts.append(
            element(
                "g",
                element("title", shown),
                element("line", x1=x, x2=x, y1=by_reward, y2=by_judge, class_="stem"),
                element("circle", cx=x, cy=by_judge, r=5.5, class_="ring"),
                element("circle", cx=x, cy=by_reward, r=5.5, class_="dot"),
                class_=place.colour,
            )
        )
    named = [Named(p.label, xs(p.kl), (ys(p.reward) + ys(p.judge)) / 2, p.colour) for p in places]
    parts += at_margin(named, right, top, bottom)
    return figure(width, height, title, parts)


def thin(xs: Sequence[float], ys: Sequence[float], points: int = _POINTS) -> tuple[list[float], list[float]]:
    """Means of consecutive points, at most `points` of them; what is not finite is left out."""
    kept = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    size = max(1, math.ceil(len(kept) / points))
    groups = [kept[start : start + size] for start in range(0, len(kept), size)]
    return (
        [sum(x for x, _ in group) / len(group) for group in groups],
        [sum(y for _, y in group) / len(group) for group in groups],
    )
