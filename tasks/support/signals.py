"""Ending a stage between two steps: the first signal asks, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.support.process import watch_parent

ORPHAN_GRACE_SECONDS = 20.0
ONE_CAUSE_SECONDS = 2.0
"""Signals this close together have one cause: a dying parent's signal and the pipeline's own, say."""


class Interrupted(BaseException):
    """A signal came while no training loop was there to stop between two steps."""


class StopFlag:
    """Remembers that SIGINT or SIGTERM came, or that the parent is gone.

    Attributes:
        number: the signal that came first, or None.
        patient: True once a training loop polls the flag; until then a signal interrupts where the stage
            stands.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.patient = False
        self._came_at = 0.0

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 or 143."""
        return 128 + (self.number or signal.SIGTERM)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles both signals and watches the parent during the block. Only the main thread can; elsewhere a
        no-op."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        watch_parent(self._orphaned)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is not None:
            if now - self._came_at > ONE_CAUSE_SECONDS:
                os._exit(128 + number)
            return
        self.number, self._came_at = number, now
        if not self.patient:
            raise Interrupted

    def _orphaned(self) -> None:
        """Asks like a signal, and ends the process where a step takes longer than the grace."""
        if self.number is None:
            os.kill(os.getpid(), signal.SIGTERM)
        timer = threading.Timer(ORPHAN_GRACE_SECONDS, os._exit, args=(128 + signal.SIGTERM,))
        timer.daemon = True
        timer.start()
