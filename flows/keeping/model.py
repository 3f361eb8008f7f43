"""What housekeeping finds: things, each with what becomes of it and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from prefloop.errors import ConfigError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Category(StrEnum):
    """What can be chosen with `--only`."""

    SCRATCH = "scratch"
    CACHE = "cache"
    EXCHANGE = "exchange"
    RUNS = "runs"
    LOGS = "logs"
    TESTS = "tests"


@dataclass(frozen=True)
class Item:
    """One thing that housekeeping looked at.

    Attributes:
        kind: what it is, in a word, such as "object" or "folder".
        name: path or id.
        size: its bytes.
        goes: True when nothing needs it.
        reason: why it goes, or why it stays.
    """

    category: Category
    kind: str
    name: str
    size: int
    goes: bool
    reason: str


@dataclass(frozen=True)
class Found:
    """All of one category.

    Attributes:
        blocked: why nothing of it can be judged now; empty where it can.
    """

    category: Category
    items: tuple[Item, ...] = ()
    blocked: str = ""

    @property
    def going(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.goes)

    @property
    def bytes_going(self) -> int:
        return sum(item.size for item in self.going)


def choose(names: str) -> tuple[Category, ...]:
    """The categories of `--only`, in the order in which they are dealt with; all of them for "".

    Raises:
        ConfigError: one is unknown.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = sorted(set(asked) - set(Category))
    if unknown:
        raise ConfigError(
            f"--only {unknown[0]}: there is no such category", f"one or more of {','.join(Category)}"
        )
    return tuple(category for category in Category if not asked or category in asked)


def seconds_of(age: str) -> float:
    """Seconds in an age such as 30d, 12h or 2w.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", age.strip())
    if not found:
        raise ConfigError(f"--older-than {age} is no age", "a number and one of s, m, h, d, w: 30d, 12h")
    return float(found[1]) * _UNITS[found[2]]


def newest(path: Path) -> float:
    """When the newest thing at or below a path changed (seconds since the epoch); 0 where nothing is."""
    times = [0.0]
    for each in [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]:
        try:
            times.append(each.lstat().st_mtime)
        except OSError:
            continue
    return max(times)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files: Sequence[Path] = list(path.rglob("*")) if path.is_dir() and not path.is_symlink() else [path]
    total = 0
    for file in files:
        try:
            total += 0 if file.is_dir() and not file.is_symlink() else file.lstat().st_size
        except OSError:
            continue
    return total
