"""Small inline SVG: elements that escape what they are given, axes with round ticks. CSS colours them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


def element(tag: str, *children: Markup | str, **attributes: float | str | None) -> Markup:
    """One element; `class_` gives `class`, underscores give hyphens, None leaves an attribute out.

    Text and attributes are escaped unless they are Markup, so that data never becomes markup.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{written}>{''.join(escape(child) for child in children)}</{tag}>")


def figure(width: float, height: float, title: str, parts: Iterable[Markup]) -> Markup:
    """An SVG that scales to its container and names itself to screen readers."""
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {_plain(width)} {_plain(height)}",
        role="img",
        aria_label=title,
        preserveAspectRatio="xMidYMid meet",
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from data [low, high] to pixels [start, stop]."""

    low: float
    high: float
    start: float
    stop: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, stop: float, *, margin: float = 0.06) -> Scale:
        """Spans the finite values with some room at both ends; [0, 1] where there are none."""
        finite = [value for value in values if math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        room = (high - low) * margin or max(abs(low) * 0.1, 0.5)
        return cls(low - room, high + room, start, stop)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round numbers inside the span: steps of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / max(count, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) + 0.0 for number in range(first, last + 1)]


def horizontal_axis(
    scale: Scale, bottom: float, top: float, *, label: str = "", count: int = 5
) -> list[Markup]:
    """Vertical grid lines with numbers below."""
    parts = []
    for tick in scale.ticks(count):
        x = scale(tick)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="gridline"))
        parts.append(element("text", short(tick), x=x, y=bottom + 14, class_="tick", text_anchor="middle"))
    if label:
        middle = (scale.start + scale.stop) / 2
        parts.append(element("text", label, x=middle, y=bottom + 34, class_="axis", text_anchor="middle"))
    return parts


def vertical_axis(scale: Scale, left: float, right: float, *, count: int = 4) -> list[Markup]:
    """Horizontal grid lines with numbers on their left."""
    parts = []
    for tick in scale.ticks(count):
        y = scale(tick)
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="gridline"))
        parts.append(element("text", short(tick), x=left - 5, y=y + 3.5, class_="tick", text_anchor="end"))
    return parts


def polyline(xs: Sequence[float], ys: Sequence[float], **attributes: float | str | None) -> Markup:
    """A line through points given in pixels."""
    points = " ".join(f"{_plain(x)},{_plain(y)}" for x, y in zip(xs, ys, strict=True))
    return element("polyline", points=points, fill="none", **attributes)


def short(value: float) -> str:
    """A number for an axis: at most four significant digits, powers of ten where it is tiny or huge."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _plain(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")
