"""How to watch: what `prefloop watch --help` lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows.watching.child import RUN
from flows.watching.formats import Recipe
from flows.watching.incoming import INCOMING

_UNPLANNED: Final = ("--set", "--preset", "--force", "--seeds", "--on")


@dataclass(frozen=True)
class Options:
    """How to watch.

    Attributes:
        interval: seconds between two looks.
        quiet: seconds without a change before a run begins.
        most: seconds after the first change at which it begins although changes go on.
        supersede: ask a run to end when newer data arrives.
        once: deal with what is there, then end.
        incoming: where files are dropped.
        default: how loose files there are imported; by their rows where None.
        bucket: URL of an object store's prefix; empty for none.
        bucket_interval: seconds between two looks there.
        arguments: passed on to `prefloop run`.
        command: the run, without its arguments.
    """

    interval: float = 1.0
    quiet: float = 2.0
    most: float = 8.0
    supersede: bool = False
    once: bool = False
    incoming: Path = INCOMING
    default: Recipe | None = None
    bucket: str = ""
    bucket_interval: float = 5.0
    arguments: tuple[str, ...] = ()
    command: tuple[str, ...] = RUN

    @property
    def planned(self) -> bool:
        """True when the run does no more than a plan of the workspace as it stands tells."""
        return not any(argument.startswith(_UNPLANNED) for argument in self.arguments)
