"""The workspace's own Prefect server: started for a run where none is named, ended with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from flows.settings import STATE
from flows.supervision import Supervisor
from prefloop.errors import WorkspaceError

START_SECONDS = 90.0
ATTEMPTS = 3


@contextmanager
def prefect_api(supervisor: Supervisor) -> Iterator[str]:
    """Yields the address of a Prefect API: the one that PREFECT_API_URL names, or one of our own on loopback.

    The variable is set for the length of the block; import Prefect inside it.

    Raises:
        WorkspaceError: no server could be started.
    """
    named = os.environ.get("PREFECT_API_URL")
    if named:
        _wait_until_healthy(named, None)
        yield named
        return
    child, address = _start(supervisor)
    os.environ["PREFECT_API_URL"] = address
    # Our own server on loopback that does not answer is gone: waiting for it, which Prefect does for minutes,
    # helps nobody.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "1")
    try:
        yield address
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        child.terminate()
        supervisor.finish(child)


def _start(supervisor: Supervisor) -> tuple[subprocess.Popen[str], str]:
    log = supervisor.root / STATE / "logs" / "prefect-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        port = free_port()
        with open(log, "w", encoding="utf-8") as output:
            child = supervisor.start(
                [sys.executable, "-m", "flows.server_process", str(port)],
                "Prefect server",
                output=output.fileno(),
                service=True,
            )
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/api", child)
            return child, f"http://127.0.0.1:{port}/api"
        except WorkspaceError as error:
            supervisor.finish(child)
            if attempt == ATTEMPTS - 1:
                raise WorkspaceError(
                    f"Prefect's server did not start: {error.message}",
                    f"read {log}; `prefloop doctor` checks the rest",
                ) from error
    raise AssertionError("unreachable")


def free_port() -> int:
    """A TCP port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
