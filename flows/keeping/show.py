"""What housekeeping found, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.keeping.model import Found, Item

NAMES_SHOWN = 5
"""Of things that go for one reason; objects of the cache have names that say nothing."""
NAMELESS = ("object", "run-cache entry")


def lines(found: Sequence[Found], *, removed: bool) -> list[str]:
    """A paragraph a category: what goes and what stays, by reason, with bytes; a sum at the end."""
    shown: list[str] = []
    for each in found:
        shown.append(each.category)
        if each.blocked:
            shown.append(f"  left alone: {each.blocked}")
        elif not each.items:
            shown.append("  nothing there")
        for goes in (True, False):
            shown += _by_reason([item for item in each.items if item.goes is goes], goes, removed)
    going = [item for each in found for item in each.going]
    total = bytes_in_words(sum(item.size for item in going))
    if not going:
        return [*shown, "", "nothing to remove"]
    if removed:
        return [*shown, "", f"removed {total}"]
    return [*shown, "", f"{total} would go; nothing was removed. To do it: --yes"]


def as_values(found: Sequence[Found], *, removed: bool) -> dict[str, Any]:
    """The same as plain values, with every item."""
    return {
        "removed": removed,
        "bytes": sum(each.bytes_going for each in found),
        "categories": {
            each.category.value: {
                "blocked": each.blocked or None,
                "bytes": each.bytes_going,
                "items": [
                    {"kind": item.kind, "name": item.name, "bytes": item.size, "goes": item.goes,
                     "reason": item.reason}
                    for item in each.items
                ],
            }
            for each in found
        },
    }  # fmt: skip


def bytes_in_words(count: int) -> str:
    """Bytes as people say them: 12 B, 3.4 MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _by_reason(items: Sequence[Item], goes: bool, removed: bool) -> list[str]:
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.kind, item.reason), []).append(item)
    word = ("went" if removed else "goes") if goes else "stays"
    shown = []
    for (kind, reason), members in groups.items():
        size = bytes_in_words(sum(item.size for item in members))
        shown.append(f"  {word:<6}{len(members)} x {kind}, {size}: {reason}")
        if goes and kind not in NAMELESS:
            shown += [f"          {item.name}  {bytes_in_words(item.size)}" for item in members[:NAMES_SHOWN]]
            if len(members) > NAMES_SHOWN:
                shown.append(f"          and {len(members) - NAMES_SHOWN} more")
    return shown
