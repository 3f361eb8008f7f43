"""What stages on a worker tell MLflow: delivered before their attempt ends, or sent home.

A worker's clone may be gone with its machine or container a moment later, so events must not wait there for
a stage that comes by. What a server cannot take, and all of it where the worker knows of no server, goes
through the exchange into the coordinator's spool, from which that run or the next one delivers it.

    python -m flows.workers.deliveries    what killed attempts left on this worker, as it starts again
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from flows.settings import STATE
from flows.storage import Storage
from flows.workers.exchange import run
from flows.workers.folder import worker_folder
from prefloop.config.read import read_section
from prefloop.config.tracking import TrackingConfig
from prefloop.errors import ConfigError, WorkspaceError
from tasks.support.locks import holder
from tasks.support.spool import state_path, undelivered, waiting

SPOOL = STATE / "spool"
_NAME = re.compile(r"[A-Za-z0-9][\w.@+=-]*", re.ASCII)
_KINDS = (".jsonl", ".state", ".files")
_HURRIED = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def server_named(clone: Path) -> bool:
    """Whether a worker's stages deliver to a tracking server by themselves: one is named for them."""
    named = read_section("tracking", TrackingConfig, clone / "params.yaml").uri
    return bool(named or os.environ.get("MLFLOW_TRACKING_URI")) and not _off()


def deliver(clone: Path, say: Callable[[str], None], *, hurried: bool = False) -> None:
    """Delivers what stages of a worker's clone left in its spool, and what killed attempts left in the clones
    beside it. A server that is away is told of, and fails nothing.

    Args:
        hurried: somebody waits, or the attempt was asked to end: a server that is away is asked once.
    """
    if not server_named(clone):
        return
    beside = [other for other in sorted(clone.parent.glob("*/")) if other != clone and not _works(other)]
    for place in (clone, *beside):
        runs = waiting(place / SPOOL)
        if not runs:
            continue
        try:
            run(place, [sys.executable, "-m", "tasks.deliver"], _HURRIED if hurried else None)
        except WorkspaceError as error:
            say(f"what {runs} run(s) tell MLflow could not be delivered: {error}")
            return


def deliver_left(folder: Path, say: Callable[[str], None]) -> None:
    """Delivers what killed attempts left anywhere below a worker's folder."""
    for workspace in sorted(folder.glob("*/")):
        idle = [path.parent for path in sorted(workspace.glob("*/params.yaml")) if not _works(path.parent)]
        if idle:
            deliver(idle[0], say, hurried=True)  # the worker waits for it


def send_home(storage: Storage, clone: Path, flow_run: str) -> list[Path]:
    """Puts undelivered runs of a clone's spool where the coordinator finds them; returns their files, to be
    removed once it knows of them.

    Raises:
        StorageAway: they could not be written.
    """
    spool, sent = clone / SPOOL, list[Path]()
    for path in [] if _off() else undelivered(spool):
        kept = path.with_suffix(".files")
        files = [file for file in sorted(kept.rglob("*")) if file.is_file()]
        files += [state_path(path)] if state_path(path).exists() else []
        for file in (*files, path):
            storage.put(file, f"{_folder(flow_run)}/{file.relative_to(spool).as_posix()}")
        sent += [path, state_path(path), kept]
    return sent


def remove(sent: list[Path]) -> None:
    """Removes what was sent home."""
    for path in sent:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def take_home(storage: Storage, root: Path, flow_run: str) -> int:
    """Brings what a flow run sent home into the workspace's spool; returns how many runs that were.

    Raises:
        ConfigError: a name that no worker of ours writes; nothing was fetched then.
        StorageAway: something could not be read.
    """
    names = {name: _checked(name, flow_run) for name in storage.sizes(_folder(flow_run))}
    last = [name for name in names if name.endswith(".jsonl")]
    for name in [*(name for name in names if name not in last), *last]:
        target = root / SPOOL / names[name]
        draft = target.with_name(f".{target.name}.part")
        storage.fetch(name, draft)
        os.replace(draft, target)  # a spool file is whole when delivery sees it
    if names:
        storage.remove(_folder(flow_run))
    return len(last)


def _off() -> bool:
    return os.environ.get("PREFLOOP_TRACKING") == "off"


def _folder(flow_run: str) -> str:
    return f"spool/{flow_run}"


def _checked(name: str, flow_run: str) -> Path:
    parts = PurePosixPath(name).relative_to(_folder(flow_run)).parts
    sound = _NAME.fullmatch(parts[0]) and parts[0].endswith(_KINDS) and ".." not in parts
    if not sound or (len(parts) > 1) != parts[0].endswith(".files"):
        raise ConfigError(
            f"a worker sent {name!r} for the tracking spool, which is no name of a spool file: refused",
            "look at that worker: it runs other code than this workspace, or somebody answers for it",
        )
    return Path(*parts)


def _works(clone: Path) -> bool:
    """Whether an attempt runs in a clone now."""
    return holder(clone / STATE / "locks/workspace.lock") is not None


if __name__ == "__main__":
    deliver_left(worker_folder(), partial(print, file=sys.stderr))
