"""A stage that failed through no fault of its own is tried again, later each time.

What failed is told by kind. The infrastructure: a worker or its machine is gone, a process was killed from
outside (SIGKILL, as by the kernel when memory runs out), a server or storage is away. That may pass, so the
stage is tried again, and goes on from its last checkpoint. All else is the stage's own: a NaN, bad data, a
wrong parameter, code that raises. It would fail the same way again, and hide for a while that it does. A full
disk counts to these: nothing but somebody who makes room ends it.
"""

from __future__ import annotations

import errno
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from flows.stage_run import StageFailed
from flows.supervision import Stopped
from prefloop.errors import InfrastructureError, PrefloopError, WorkspaceError

KILLED = 128 + signal.SIGKILL
JITTER = 0.2
"""At most this share is added to a wait, so that stages that failed together do not come back together."""
POLL_SECONDS = 0.2

NETWORK = frozenset(
    (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
     errno.EHOSTUNREACH, errno.ENOTCONN)
)  # fmt: skip
"""Errors of a drive or network that is away; a refused or broken connection has a class of its own."""
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_WORDS = ("No space left on device", "Disk quota exceeded")

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often, and after what waits.

    Attributes:
        retries: attempts after the first (count).
        seconds: before the second attempt; doubled each time.
    """

    retries: int
    seconds: float

    def waits(self, draw: Callable[[], float] = random.random) -> Iterator[float]:
        """Seconds before each further attempt.

        Args:
            draw: a number from 0 to 1 for each.
        """
        for attempt in range(self.retries):
            yield self.seconds * 2**attempt * (1 + JITTER * draw())


def is_fault(error: BaseException, *, elsewhere: bool = False) -> bool:
    """True for a fault of the infrastructure, which may pass; False for what a stage would do again.

    Args:
        elsewhere: the stage was on its way to a worker or back: what a workspace cannot do there (a clone
            that is still in other hands, a transfer that failed) may pass, too, unless a disk is full.
    """
    if disk_is_full(error):
        return False
    if isinstance(error, StageFailed):
        return error.exit_code in (KILLED, InfrastructureError.exit_code)
    if isinstance(error, PrefloopError):
        return isinstance(error, InfrastructureError) or (elsewhere and isinstance(error, WorkspaceError))
    return isinstance(error, (ConnectionError, TimeoutError)) or (
        isinstance(error, OSError) and error.errno in NETWORK
    )


def disk_is_full(error: BaseException | None) -> bool:
    """True when a full disk, or a used-up quota, is what an error came from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if isinstance(error, PrefloopError) and any(words in error.message for words in FULL_WORDS):
            return True
        error = error.__cause__
    return False


def persist(
    stage: str,
    run: Callable[[], T],
    patience: Patience,
    *,
    elsewhere: bool,
    stopped: Callable[[], bool],
    say: Callable[[str], None],
) -> tuple[T, tuple[str, ...]]:
    """Runs a stage until it ends well, fails by itself, or has had its attempts.

    Args:
        elsewhere: see `is_fault`.
        stopped: says that the run was asked to end; no attempt is made after that.
        say: is told of each attempt that failed, for people.

    Returns:
        The result, and the faults of earlier attempts, a line each.

    Raises:
        PrefloopError: of the last attempt.
        Stopped: the run was asked to end while it waited.
    """
    faults: list[str] = []
    waits = patience.waits()
    while True:
        try:
            return run(), tuple(faults)
        except Exception as error:
            if stopped() or not is_fault(error, elsewhere=elsewhere):
                raise
            faults.append(_in_short(error))
            wait = next(waits, None)
            if wait is None:
                last = _after(error, faults)
                if last is error:
                    raise
                raise last from error
        say(
            f"{stage}  attempt {len(faults)} of {patience.retries + 1} was lost to the infrastructure: "
            f"{faults[-1]}; again in {wait:.0f} s"
        )
        _sleep(stage, wait, stopped)


def _sleep(stage: str, seconds: float, stopped: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if stopped():
            raise Stopped(stage)
        time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def _in_short(error: Exception) -> str:
    if isinstance(error, StageFailed) and error.exit_code == KILLED:
        return "a process of the stage was killed (SIGKILL), as the kernel does when memory runs out"
    text = error.message if isinstance(error, PrefloopError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0] if text else type(error).__name__


def _after(error: Exception, faults: list[str]) -> PrefloopError:
    """The error of the last attempt, saying how many there were."""
    known = error if isinstance(error, PrefloopError) else InfrastructureError(_in_short(error))
    if len(faults) > 1:
        known.message += f"\n    ({len(faults)} attempts, each lost to the infrastructure)"
    return known
