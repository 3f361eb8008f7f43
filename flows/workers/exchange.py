"""What coordinator and workers exchange, and where: one folder or one prefix of an object store.

    code/COMMIT.pack            the workspace as a git commit
    data/                       DVC remote: inputs, outputs, run-cache
    results/FLOW-RUN.json       what a worker's flow run made, as dvc.lock has it
    spool/FLOW-RUN/...          what a worker could not tell MLflow
    checkpoints/KEY/...         of stages that train at this moment, by stage key

It is .prefloop/remote by default, which serves workers on this machine, or what PREFLOOP_REMOTE names: a
shared drive, or a URL such as s3://bucket/prefloop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.planning.absent import REMOTE
from flows.settings import STATE, child_environment
from flows.storage import Storage, checked_place
from flows.workers.trust import FOLDER
from prefloop.errors import WorkspaceError

LOCK_SECONDS = 120.0
DATA = "data"
"""Where the DVC remote lies in it."""


@dataclass(frozen=True)
class Exchange:
    """The shared place.

    Attributes:
        place: absolute folder, or URL.
    """

    place: str

    @cached_property
    def storage(self) -> Storage:
        return Storage(self.place)

    @property
    def data(self) -> str:
        """URL or path of the DVC remote."""
        return f"{self.place}/{DATA}"

    def write_result(self, flow_run: str, result: Mapping[str, Any]) -> None:
        """Leaves what a flow run of a worker made."""
        text = json.dumps(result, indent=2, sort_keys=True)
        self.storage.write(f"results/{flow_run}.json", text.encode("utf-8"))

    def has_result(self, flow_run: str) -> bool:
        """True where what a flow run of a worker made is still there."""
        return bool(self.storage.sizes(f"results/{flow_run}.json"))

    def read_result(self, flow_run: str) -> dict[str, Any]:
        """What a flow run of a worker made.

        Raises:
            WorkspaceError: there is nothing, or no JSON.
        """
        try:
            return dict(json.loads(self.storage.read(f"results/{flow_run}.json")))
        except (FileNotFoundError, ValueError) as error:
            raise WorkspaceError(
                f"{self.place} has no result of flow run {flow_run}, which ended well",
                f"see that the worker has the same {FOLDER}, then run again",
            ) from error


def exchange_of(root: Path) -> Exchange:
    """The exchange of a workspace; nothing is made.

    Raises:
        ConfigError: PREFLOOP_REMOTE names nothing that can be used.
    """
    return Exchange(checked_place(os.environ.get(FOLDER) or str(root / STATE / "remote"), FOLDER))


def open_exchange(root: Path) -> Exchange:
    """The exchange of a workspace, which DVC is told of in .dvc/config.local: the URL, and no key."""
    exchange = exchange_of(root)
    if "://" not in exchange.place:
        Path(exchange.data).mkdir(parents=True, exist_ok=True)
    tell_dvc(root, exchange.data)
    return exchange


def tell_dvc(root: Path, data: str, *, cache: Path | None = None) -> None:
    """Writes the workers' remote into .dvc/config.local, as DVC's default where there is no other.

    Args:
        data: URL or path of the remote.
        cache: DVC's cache, in a worker's clone; the remote is the default there in any case.
    """
    from dvc.config import Config

    config: Any = Config(dvc_dir=str(root / ".dvc"))
    # A download is hashed: what storage or a network cut short does not enter the cache.
    wanted = {"url": data, "verify": True}
    with config.edit("local") as local:
        local.setdefault("remote", {})[REMOTE] = wanted
        if cache is not None or not config.get("core", {}).get("remote"):
            local.setdefault("core", {})["remote"] = REMOTE
        if cache is not None:
            local.setdefault("cache", {})["dir"] = str(cache)


def merge_lock(root: Path, stage: str, entry: Mapping[str, object]) -> None:
    """Puts a stage's entry into dvc.lock, whole or not at all, while no DVC command writes it.

    Raises:
        WorkspaceError: DVC's lock was not free in time.
    """
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.utils.serialize import load_yaml

    deadline = time.monotonic() + LOCK_SECONDS
    repo = Repo(str(root))
    while True:
        try:
            with repo.lock:
                path = root / "dvc.lock"
                lock: Any = load_yaml(str(path)) if path.exists() else {"schema": "2.0", "stages": {}}
                lock["stages"][stage] = dict(entry)
                write_lock(path, lock)
            return
        except LockError as error:
            if time.monotonic() > deadline:
                raise WorkspaceError(
                    "dvc.lock is being written by another process", "wait until it ends"
                ) from error
            time.sleep(0.2)


def write_lock(path: Path, lock: Mapping[str, object]) -> None:
    """Writes dvc.lock as DVC does."""
    from dvc.utils.serialize import dump_yaml

    draft = path.with_suffix(".tmp")
    dump_yaml(str(draft), dict(lock))
    os.replace(draft, path)


def dvc(folder: Path, *arguments: str) -> str:
    """Runs a DVC command to its end and returns what it printed."""
    return run(folder, [sys.executable, "-m", "dvc", *arguments])


def run(
    folder: Path,
    command: Sequence[str],
    extra: Mapping[str, str] | None = None,
    *,
    text: str | None = None,
    source: int | None = None,
    output: int = subprocess.PIPE,
) -> str:
    """Runs a short command to its end.

    Args:
        extra: further environment variables.
        text: what it reads from its standard input; else `source`, an open file, or nothing.
        output: an open file that takes what it prints, which is returned otherwise.

    Raises:
        WorkspaceError: it failed; what it said is in the message.
    """
    given: Any = {"stdin": subprocess.DEVNULL if source is None else source}
    done = subprocess.run(
        list(command),
        cwd=folder,
        env={**child_environment(extra), "GIT_TERMINAL_PROMPT": "0"},
        **(given if text is None else {"input": text}),
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or (done.stdout or "").strip())[-2000:]
        raise WorkspaceError(f"`{' '.join(command)}` failed in {folder}: {said}")
    return done.stdout or ""
