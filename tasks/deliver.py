"""Delivers spooled events to MLflow: `python -m tasks.deliver`.

Without arguments: what waits, once. With `--follow`: every `tracking.flush_seconds`, until its standard input
says `finish` (what waits is delivered first) or ends (its owner died: the next delivery goes on).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from prefloop.config.tracking import TrackingConfig
from prefloop.errors import PrefloopError, WorkspaceError
from tasks.support.ending import ended_well
from tasks.support.locks import held
from tasks.support.mlflow_store import reached, read_config
from tasks.support.signals import StopFlag
from tasks.support.spool import spool_folder
from tasks.support.workspace import state_folder

LOG_BYTES = 2**20


def deliver_once(*, wait_seconds: float = 0.0) -> int:
    """Delivers what waits in the spool; returns how many events. Makes database and experiment on first use.

    Args:
        wait_seconds: how long to wait while another process delivers.

    Raises:
        WorkspaceError: another process delivers.
        StoreAway: the store cannot be reached; nothing is lost.
    """
    config = read_config()
    with ExitStack() as stack:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                stack.enter_context(held(spool_folder() / "delivery.lock", "the tracking spool"))
                break
            except WorkspaceError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.2)
        return _deliver(config)


def _deliver(config: TrackingConfig) -> int:
    with reached(config) as store:
        from tasks.support.delivery import Delivery

        return Delivery(store, spool_folder()).deliver()


class Follower:
    """Delivers again and again until told otherwise."""

    def __init__(self) -> None:
        self.finishing = threading.Event()

    def listen(self) -> None:
        """Waits for the owner's word on standard input, or for its end."""
        for line in sys.stdin:
            if line.strip() == "finish":
                self.finishing.set()
                return
        os._exit(0)

    def run(self, seconds: float) -> int:
        """Delivers every `seconds`; returns the exit code of the last delivery."""
        threading.Thread(target=self.listen, daemon=True).start()
        while True:
            last = self.finishing.is_set()
            code = self._attempt()
            if last:
                return code
            self.finishing.wait(seconds)

    def _attempt(self) -> int:
        try:
            deliver_once()
        except PrefloopError as error:
            logging.getLogger(__name__).warning("%s", error)
            return error.exit_code
        return 0


def _log_to_file() -> None:
    """Sends this process's words, mlflow's included, to .prefloop/delivery.log: the terminal belongs to the
    run."""
    path: Path = state_folder() / "delivery.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.unlink()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)


def main(arguments: list[str]) -> int:
    if "--follow" in arguments:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _log_to_file()
        os.nice(5)
        return Follower().run(read_config().flush_seconds)
    with ended_well("deliver", StopFlag()):
        logging.getLogger("alembic").setLevel(logging.WARNING)
        count = deliver_once(wait_seconds=60.0)
        print(f"{count} events delivered")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
