"""Waiting until changes have come to rest, but not for ever."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Debounce:
    """When to act on changes that come one after the other.

    Attributes:
        quiet: seconds without a change after which to act.
        most: seconds after the first change at which to act in any case.
    """

    quiet: float
    most: float
    first: float | None = None
    last: float | None = None

    def notice(self, earliest: float, now: float) -> None:
        """A change was seen at `now`; it happened after the look at `earliest` (both monotonic, seconds)."""
        self.first = earliest if self.first is None else self.first
        self.last = now

    def due(self, now: float) -> bool:
        """True when it is time to act, or nothing changed lately."""
        if self.first is None or self.last is None:
            return True
        return now - self.last >= self.quiet or now - self.first >= self.most

    def clear(self) -> None:
        """What was noticed is being dealt with."""
        self.first = self.last = None
