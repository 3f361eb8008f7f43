"""What a stage cost over all its processes: each notes what it spent so far beside the checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from prefloop.errors import PrefloopError
from prefloop.files import read_json, write_json
from tasks.support.costs import cost_of, total

NOTE_SECONDS: Final = 5.0
"""How often the cost is noted while a stage trains: what a kill -9 makes forget is not much more."""


class Spent:
    """The cost of the processes that worked at a stage before this one, under the same stage key.

    Args:
        scratch: the stage's folder, which goes when the stage ends well.
    """

    def __init__(self, scratch: Path) -> None:
        self._file = scratch / "spent.json"
        self._noted = time.monotonic()
        self._earlier: list[dict[str, float]] = []
        try:
            self._earlier = [cost_of(read_json(self._file))] if self._file.exists() else []
        except (PrefloopError, OSError, AttributeError):
            return  # a damaged note costs a figure, not a training

    @property
    def due(self) -> bool:
        """True when the last note is some seconds old."""
        return time.monotonic() - self._noted >= NOTE_SECONDS

    def with_own(self, cost: Mapping[str, float]) -> dict[str, float]:
        """This process's cost and that of those before it, together."""
        return total([*self._earlier, cost])

    def note(self, cost: Mapping[str, float]) -> None:
        """Keeps both for the next process; a full disk keeps nothing, and ends nothing."""
        self._noted = time.monotonic()
        try:
            write_json(self._file, self.with_own(cost))
        except (PrefloopError, OSError):
            return
