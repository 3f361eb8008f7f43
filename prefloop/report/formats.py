"""Figures as people read them."""

from __future__ import annotations


def percent(share: float) -> str:
    """A share as a whole percentage, with one decimal near the ends."""
    digits = 1 if 0 < share < 0.01 or 0.99 < share < 1 else 0
    return f"{100 * share:.{digits}f} %".replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 2) -> str:
    """A number with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float, digits: int = 2) -> str:
    """An interval as people write it."""
    return f"{signed(low, digits)} to {signed(high, digits)}"
