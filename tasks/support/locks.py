"""Locks on files that the kernel releases with the process that held them, however it ended."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prefloop.errors import WorkspaceError
from tasks.support.process import ProcessId, identify
from tasks.support.workspace import PIPELINE_ID

_ATTEMPTS = 4
"""A look at the holder (see `holder`) takes the lock for an instant: worth trying again."""


@dataclass(frozen=True)
class Holder:
    """Who wrote its name into a lock file.

    Attributes:
        process: the holder; None where the file names nobody.
        pipeline: the pipeline run that the holder works for; empty when it was started by hand.
    """

    process: ProcessId | None
    pipeline: str


@contextmanager
def held(path: Path | str, what: str, *, name: str = "") -> Iterator[None]:
    """Holds an exclusive lock on `path` for the length of the block; the file names the holder.

    Args:
        what: is locked, for errors.
        name: of the holder: a run's id, or a command. By default the run that this process belongs to.

    Raises:
        WorkspaceError: another live process holds it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as handle:
        _take(handle, what)
        process = identify(os.getpid())
        handle.truncate(0)
        json.dump(
            {
                "pid": os.getpid(),
                "started": process.started if process else 0.0,
                "pipeline": name or os.environ.get(PIPELINE_ID, ""),
            },
            handle,
        )
        handle.flush()
        try:
            yield
        finally:
            handle.truncate(0)


def holder(path: Path) -> Holder | None:
    """Who holds the lock at this moment; None when it is free. The lock is not taken from anybody."""
    try:
        handle = open(path, "r+", encoding="utf-8")  # noqa: SIM115
    except FileNotFoundError:
        return None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(handle)
    return None


def _take(handle: IO[str], what: str) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if attempt == _ATTEMPTS - 1:
                other = _read(handle)
                pid = other.process.pid if other.process else "unknown"
                who = other.pipeline or "another process"
                raise WorkspaceError(
                    f"{what} is in the hands of {who} (pid {pid})",
                    f"wait until it ends, or end it: kill {pid}",
                ) from error
            time.sleep(0.1)


def _read(handle: IO[str]) -> Holder:
    handle.seek(0)
    try:
        value = json.loads(handle.read())
        return Holder(ProcessId(int(value["pid"]), float(value["started"])), str(value["pipeline"]))
    except (ValueError, KeyError, TypeError):
        return Holder(None, "")
