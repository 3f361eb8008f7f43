"""The workspace's own Prefect server: started for a run where none is named, ended with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.prefect_database import provide_database
from flows.settings import STATE
from flows.supervision import Supervisor
from prefloop.errors import WorkspaceError

START_SECONDS = 90.0


@contextmanager
def prefect_api(supervisor: Supervisor) -> Iterator[Callable[[], None]]:
    """Sees to a Prefect API: the one that PREFECT_API_URL names, or one of our own on loopback.

    The variable is set for the length of the block; import Prefect inside it. Our own server takes seconds to
    start, in which other work can be done.

    Yields:
        What waits until the API answers; it raises WorkspaceError where it does not.

    Raises:
        WorkspaceError: the named one does not answer.
    """
    named = os.environ.get("PREFECT_API_URL")
    if named:
        refuse_silent_server()  # it is there or not: nothing is begun before that is known
        yield lambda: None
        return
    log = supervisor.root / STATE / "logs" / "prefect-server.log"
    child, address = _start(supervisor, log)
    os.environ["PREFECT_API_URL"] = address
    # Our own server on loopback that does not answer is gone: waiting for it, which Prefect does for minutes,
    # helps nobody.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "1")

    def ready() -> None:
        try:
            _wait_until_healthy(address, child)
        except WorkspaceError as error:
            raise WorkspaceError(
                f"Prefect's server did not start: {error.message}",
                f"read {log}; `prefloop doctor` checks the rest",
            ) from error

    try:
        yield ready
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        child.terminate()
        supervisor.finish(child)


def refuse_silent_server() -> None:
    """Makes sure that the server which PREFECT_API_URL names answers before anything is asked of it.

    Raises:
        WorkspaceError: it does not.
    """
    if named := os.environ.get("PREFECT_API_URL"):
        _wait_until_healthy(named, None)


def _start(supervisor: Supervisor, log: Path) -> tuple[subprocess.Popen[str], str]:
    """A server on a port that it gets open: nobody else can take it before."""
    log.parent.mkdir(parents=True, exist_ok=True)
    provide_database(Path(os.environ["PREFECT_HOME"]))
    with socket.socket() as listener, open(log, "w", encoding="utf-8") as output:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        child = supervisor.start(
            [sys.executable, "-m", "flows.server_process", f"fd:{listener.fileno()}"],
            "Prefect server",
            output=output.fileno(),
            service=True,
            pass_fds=(listener.fileno(),),
        )
        return child, f"http://127.0.0.1:{listener.getsockname()[1]}/api"


def _wait_until_healthy(address: str, child: subprocess.Popen[str] | None) -> None:
    deadline = time.monotonic() + (START_SECONDS if child else 10)
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if child is not None and child.poll() is not None:
            raise WorkspaceError(f"it ended with exit code {child.returncode}")
        if time.monotonic() > deadline:
            raise WorkspaceError(
                f"Prefect's server at {address} does not answer", "start it, or unset PREFECT_API_URL"
            )
        time.sleep(0.1)
