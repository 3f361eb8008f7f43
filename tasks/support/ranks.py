"""Processes that a stage started to share its training: how they know, and how they keep quiet.

They run the stage's own command up to where it would write something. They hold no locks, show and track
nothing, and leave signals to rank 0, the stage's own process, which tells them in which step to stop. How
they are started is in tasks/support/sharing.py; nothing here needs torch.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prefloop.errors import StopRequested
from tasks.support.process import watch_parent

RANK = "PREFLOOP_RANK"
"""Environment variable of a process that rank 0 started: its rank, how many there are, and where they meet.
A name of our own: RANK itself may be there for other reasons, such as a cluster's scheduler."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its training."""

    rank: int
    count: int
    meeting: Path

    def __str__(self) -> str:
        return f"{self.rank}:{self.count}:{self.meeting}"


def place() -> Place | None:
    """The place of a process that a stage started to share its training; None for the stage itself."""
    rank, _, rest = os.environ.get(RANK, "").partition(":")
    count, _, path = rest.partition(":")
    return Place(int(rank), int(count), Path(path)) if rank else None


class Finished(BaseException):
    """What is left to do is rank 0's alone."""


@contextmanager
def following() -> Iterator[None]:
    """The block of a process that is not rank 0; it ends well where rank 0 writes, or was asked to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and a pipeline send them to all processes
        signal.signal(number, signal.SIG_IGN)
    watch_parent(_orphaned)
    try:
        with suppress(Finished, StopRequested):
            yield
    except BaseException:
        _clear()
        raise


def _orphaned() -> None:
    _clear()
    os._exit(128 + signal.SIGTERM)


def _clear() -> None:
    """Removes the folder where the processes met: rank 0 may not be there any more to do it."""
    if own := place():
        shutil.rmtree(own.meeting.parent, ignore_errors=True)
