"""The outcome of one look at one thing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        name: what was looked at.
        level: "ok"; "note", worth knowing but nothing stops; "broken", a run would fail.
        found: what there is.
        remedy: what to do about it; empty when it is ok.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Check:
    """A check that found nothing wrong."""
    return Check(name, "ok", found)


def note(name: str, found: str, remedy: str) -> Check:
    """A check that found something worth knowing."""
    return Check(name, "note", found, remedy)


def broken(name: str, found: str, remedy: str) -> Check:
    """A check that found what would make a run fail."""
    return Check(name, "broken", found, remedy)


def listed(names: Iterable[str], most: int = 5) -> str:
    """A few names, and how many more there are."""
    all_names = sorted(names)
    more = f" and {len(all_names) - most} more" if len(all_names) > most else ""
    return ", ".join(all_names[:most]) + more
