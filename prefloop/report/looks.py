"""Gold against KL: the way of every policy through its training, from SFT on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from prefloop.report.labels import Named, at_margin, room_for
from prefloop.report.svg import Scale, element, figure, horizontal_axis, polyline, vertical_axis

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stop:
    """A look: its KL to SFT (nats a response), and its gain over SFT with the interval."""

    step: int
    kl: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Way:
    """A policy's looks in order of their steps; `colour` is a CSS class."""

    policy: str
    stops: tuple[Stop, ...]
    colour: str


def look_charts(looks: Figures, colours: Mapping[str, str]) -> list[tuple[str, str, Markup]]:
    """(title, caption, chart) of the judge's gain and of the reward model's; none without looks.

    Args:
        looks: what metrics/looks.json holds. colours: policy -> CSS class.
    """
    policies: Figures = looks.get("policies", {})
    if not policies:
        return []
    judge = "Gold" if looks["judge"] == "gold" else "Judge's score"
    charts = [
        (f"{judge} against KL", "Gain over SFT by the judge, which no policy was trained on.", "judge_gain"),
        ("Reward model against KL", "Gain over SFT by the model that was optimised.", "reward_gain"),
    ]
    return [
        (title, caption, ways_chart([_way(name, policies[name], gain, colours) for name in policies], title))
        for title, caption, gain in charts
    ]


def ways_chart(ways: Sequence[Way], title: str) -> Markup:
    """Gain over SFT against KL: a line a policy from SFT, at 0 and 0, through its looks in order, with their
    intervals as bars, and its name at the end."""
    width, height, left, top = 480.0, 330.0, 44.0, 14.0
    right, bottom = width - 16 - room_for([way.policy for way in ways]), height - 42
    stops = [stop for way in ways for stop in way.stops]
    xs = Scale.over([0.0, *(stop.kl for stop in stops)], left, right)
    ys = Scale.over([0.0, *(bound for stop in stops for bound in (stop.low, stop.high))], bottom, top)
    parts = vertical_axis(ys, left, right, count=6)
    parts += horizontal_axis(xs, bottom, top, label="KL to SFT (nats a response)")
    parts.append(element("line", x1=left, x2=right, y1=ys(0.0), y2=ys(0.0), class_="mark"))
    for way in ways:
        line = polyline(
            [xs(0.0), *(xs(stop.kl) for stop in way.stops)],
            [ys(0.0), *(ys(stop.gain) for stop in way.stops)],
            class_="curve",
        )
        marks = [mark for stop in way.stops for mark in _marks(way.policy, stop, xs, ys)]
        parts.append(element("g", line, *marks, class_=way.colour))
    ends = [(way, way.stops[-1]) for way in ways]
    named = [Named(way.policy, xs(stop.kl), ys(stop.gain), way.colour) for way, stop in ends]
    parts += at_margin(named, right, top, bottom)
    parts.append(element("circle", cx=xs(0.0), cy=ys(0.0), r=4.5, class_="origin"))
    parts.append(element("text", "sft", x=xs(0.0) - 4, y=ys(0.0) - 9, class_="label", text_anchor="middle"))
    return figure(width, height, title, parts)


def _way(name: str, figures: Figures, gain: str, colours: Mapping[str, str]) -> Way:
    looks = sorted(figures["looks"].values(), key=lambda look: int(look["step"]))
    stops = [Stop(look["step"], look["kl"], look[gain]["mean"], *look[gain]["ci95"]) for look in looks]
    return Way(name, tuple(stops), colours.get(name, "c7"))


def _marks(policy: str, stop: Stop, xs: Scale, ys: Scale) -> list[Markup]:
    x = xs(stop.kl)
    shown = (
        f"{policy} at step {stop.step}: {stop.kl:.2f} nats, {stop.gain:+.2f} "
        f"(95 % interval {stop.low:+.2f} to {stop.high:+.2f})"
    )
    return [
        element("line", x1=x, x2=x, y1=ys(stop.low), y2=ys(stop.high), class_="whisker"),
        element("circle", element("title", shown), cx=x, cy=ys(stop.gain), r=4, class_="dot"),
    ]
