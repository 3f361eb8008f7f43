"""Events on their way to the tracking server. They go to a file first, so neither a server that is away nor a
kill loses one; `tasks.support.delivery` reads them from there."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefloop.files import write_json
from tasks.support.workspace import slug, state_folder

SYNC_SECONDS = 2.0

Event = dict[str, Any]


def spool_folder() -> Path:
    """Where spool files lie, of this workspace or of the one a temporary clone came from."""
    return state_folder() / "spool"


def new_run_id(name: str) -> str:
    """An id that sorts by time and is unique in the workspace."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{slug(name)}-{secrets.token_hex(3)}"


class SpoolWriter:
    """Appends events of one run to its spool file. It never raises: training goes on without tracking.

    Args:
        run: the run's id; its file is `<folder>/<run>.jsonl`.
        folder: the spool folder.
    """

    def __init__(self, run: str, folder: Path | None = None) -> None:
        self.run = run
        self.path = (folder or spool_folder()) / f"{run}.jsonl"
        self.error: OSError | None = None
        self._lock = threading.Lock()
        self._synced = 0.0

    def append(self, kind: str, **fields: Any) -> int:
        """Writes one event, forces it to disk when two seconds have passed, and returns its time
        (milliseconds)."""
        now = int(time.time() * 1000)
        event = {"kind": kind, "time": now, **fields}
        self._write((json.dumps(event, ensure_ascii=False, default=str) + "\n").encode("utf-8"))
        return now

    def sync(self) -> None:
        """Forces every event to disk."""
        self._write(b"", force=True)

    def _write(self, line: bytes, *, force: bool = False) -> None:
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "ab") as handle:
                    handle.write(line)
                    handle.flush()
                    if force or time.monotonic() - self._synced > SYNC_SECONDS:
                        os.fsync(handle.fileno())
                        self._synced = time.monotonic()
            except OSError as error:
                self.error = self.error or error


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yields (event, offset after it) from byte `offset` on; a line that is still being written ends the
    reading.

    A line that a kill left torn in the middle of the file is passed over: the event was never whole.
    """
    with open(path, "rb") as handle:
        handle.seek(offset)
        for line in handle:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                yield json.loads(line), offset
            except ValueError:
                continue


def waiting(folder: Path | None = None) -> int:
    """How many runs have events that were not delivered yet."""
    return len(undelivered(folder or spool_folder()))


def undelivered(folder: Path) -> list[Path]:
    """Spool files with events that were not delivered yet."""
    files = sorted(folder.glob("*.jsonl"))
    return [path for path in files if path.stat().st_size > int(read_state(path).get("offset", 0))]


def state_path(path: Path) -> Path:
    """The file beside a spool file that says how far it was delivered."""
    return path.with_suffix(".state")


def read_state(path: Path) -> dict[str, Any]:
    """How far the spool file `path` was delivered: {"offset": bytes, "mlflow_run_id": id}; empty before the
    first."""
    try:
        state = json.loads(state_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Remembers how far the spool file `path` was delivered."""
    write_json(state_path(path), dict(state))


def mlflow_run_id(run: str) -> str | None:
    """The MLflow id of one of our runs, once its first events were delivered."""
    found = read_state(spool_folder() / f"{run}.jsonl").get("mlflow_run_id")
    return str(found) if found else None
