"""The process that delivers spooled events while a stage or a pipeline runs.

Importing mlflow takes seconds of processor time and hundreds of megabytes, and a thread that does it holds up
a training loop. So delivery is a process of its own: a training stage never imports mlflow, and an edit to
the delivery code is no reason to train again. It ends with its owner, whose death it sees as the end of its
standard input.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tasks.support.workspace import PIPELINE_ID

DELIVERED = "PREFLOOP_DELIVERED_BY"
"""Environment variable: pid of the delivering process that the pipeline keeps."""
START_AFTER_SECONDS = 5.0
FINISH_SECONDS = 30.0
HURRIED_SECONDS = 3.0


class DeliveryProcess:
    """`python -m tasks.deliver --follow`, from `start` to `finish`."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Starts it; a machine that cannot start one leaves events in the spool."""
        here = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH", "")]))
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tasks.deliver", "--follow"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError:
            self._child = None

    def finish(self, seconds: float = FINISH_SECONDS) -> None:
        """Asks for what is left to be delivered, waits at most `seconds`, and ends the process."""
        if self._child is None or self._child.stdin is None:
            return
        try:
            self._child.stdin.write(b"finish\n")
            self._child.stdin.close()
        except OSError:
            pass
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None


@contextmanager
def alongside() -> Iterator[None]:
    """Delivers while the block runs, unless the pipeline does it already or PREFLOOP_TRACKING is off.

    A block of less than five seconds leaves its events to whoever delivers next.
    """
    if os.environ.get("PREFLOOP_TRACKING") == "off" or pipeline_delivers(os.environ):
        yield
        return
    process = DeliveryProcess()
    timer = threading.Timer(START_AFTER_SECONDS, process.start)
    timer.daemon = True
    timer.start()
    well = False
    try:
        yield
        well = True
    finally:
        timer.cancel()
        timer.join()
        process.finish(FINISH_SECONDS if well else HURRIED_SECONDS)


def pipeline_delivers(variables: Mapping[str, str]) -> bool:
    """True where a pipeline delivers what a process in this environment logs."""
    pid = variables.get(DELIVERED, "")
    if not variables.get(PIPELINE_ID) or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except OSError:
        return False
    return True
