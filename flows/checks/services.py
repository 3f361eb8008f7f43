"""MLflow's and Prefect's stores, what waits to be delivered, and the ports."""

from __future__ import annotations

import os
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from flows.checks.check import Check, broken, note, ok
from flows.settings import STATE
from tasks.support.mlflow_store import read_config, tracking_uri
from tasks.support.redact import redact
from tasks.support.spool import waiting

LOCKED = "another program writes to it: end that program, or wait; runs go on and deliver later"
CORRUPT = "move the file away; the next run makes a new one"


def services(root: Path) -> Iterator[Check]:
    """Every check of this file."""
    yield mlflow()
    yield undelivered()
    yield prefect(root)
    yield loopback()


def mlflow() -> Check:
    """The tracking store answers, or is a database that can be written."""
    uri = tracking_uri(read_config())
    if uri.startswith("sqlite:///"):
        return database("mlflow", Path(uri.removeprefix("sqlite:///")))
    if uri.startswith(("http://", "https://")):
        shown = str(redact("uri", uri))
        if answers(f"{uri.rstrip('/')}/health"):
            return ok("mlflow", f"{shown} answers")
        return note(
            "mlflow",
            f"{shown} does not answer",
            "start it; until then runs keep what they log and deliver it later",
        )
    return ok("mlflow", f"{redact('uri', uri)} (not looked into)")


def undelivered() -> Check:
    """Events of runs that did not reach the tracking store yet."""
    runs = waiting()
    if runs:
        return note(
            "tracking spool",
            f"{runs} runs have events not delivered yet",
            "the next prefloop run delivers them",
        )
    return ok("tracking spool", "everything delivered")


def prefect(root: Path) -> Check:
    """The Prefect server that PREFECT_API_URL names answers, or the workspace's own database is sound."""
    api = os.environ.get("PREFECT_API_URL", "")
    if not api:
        return database("prefect", root / STATE / "prefect" / "prefect.db")
    if answers(f"{api.rstrip('/')}/health"):
        return ok("prefect", f"{api} answers")
    return broken(
        "prefect",
        f"PREFECT_API_URL is {api}, and nothing answers there",
        "start that server, or unset PREFECT_API_URL",
    )


def database(name: str, path: Path, wait_seconds: float = 1.0) -> Check:
    """An SQLite file is sound and can be written; it need not exist before the first run."""
    if not path.exists():
        return ok(name, "no database yet: the first run makes it")
    try:
        connection = sqlite3.connect(path, timeout=wait_seconds, isolation_level=None)
        try:
            state = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        return note(name, f"{path}: {error}", LOCKED)
    except sqlite3.DatabaseError as error:
        return broken(name, f"{path} is no sound database: {error}", CORRUPT)
    if state != "ok":
        return broken(name, f"{path} is damaged: {state}", CORRUPT)
    return ok(name, f"{path.stat().st_size / 1e6:.1f} MB database, sound and free to write")


def loopback() -> Check:
    """A server can be started on this machine: runs start Prefect's on a free port of their own."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            probe.listen()
            with socket.create_connection(probe.getsockname(), timeout=2):
                pass
    except OSError as error:
        return broken(
            "ports", f"no connection to 127.0.0.1: {error}", "allow loopback connections on this machine"
        )
    return ok("ports", "loopback connections work; runs take a free port")


def answers(url: str, seconds: float = 3.0) -> bool:
    """Whether a server answers there with success."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False
