"""The run that a watch starts: a process of its own that ends with the watch, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from flows.settings import child_environment

RUN = (sys.executable, "-m", "flows.cli.main", "run")


class Child:
    """`prefloop run` under way.

    Args:
        command: what to start.
        variables: by which it notices that the watch is gone, and finds what the watch keeps for it.
        quiet: keep standard output free; what the run prints goes to standard error.

    Attributes:
        superseded: it was asked to end for newer data.
        asked: it was sent a signal.
    """

    def __init__(
        self, root: Path, command: Sequence[str], variables: Mapping[str, str], *, quiet: bool
    ) -> None:
        self.superseded = self.asked = False
        self._process = subprocess.Popen(
            list(command),
            cwd=root,
            env=child_environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if quiet else None,
            start_new_session=True,  # Ctrl-C comes by way of the watch, once
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def status(self) -> int | None:
        """Exit code, a signal's as shells give it; None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def supersede(self) -> None:
        """Asks it, once, to save its checkpoint and end."""
        if not self.superseded:
            self.superseded = True
            self.send(signal.SIGINT)

    def send(self, number: int) -> None:
        """Passes a signal on."""
        self.asked = True
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
