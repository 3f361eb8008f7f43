"""What coordinator and workers exchange: the code as a git commit, the data through a DVC remote.

Both lie in one folder that everybody reaches: .prefloop/remote by default, which serves workers on this
machine, or the one that PREFLOOP_REMOTE names, such as a shared drive.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.settings import STATE, child_environment
from prefloop.errors import WorkspaceError

REMOTE = "prefloop-workers"
LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class Exchange:
    """The shared folder.

    Attributes:
        code: bare git repository with the commits that workers check out.
        data: DVC remote.
        results: a JSON file a flow run of a worker: what it made, as dvc.lock has it.
    """

    code: Path
    data: Path
    results: Path


def open_exchange(root: Path) -> Exchange:
    """Makes the shared folder on first use, and tells DVC of it in .dvc/config.local."""
    folder = Path(os.environ.get("PREFLOOP_REMOTE") or root / STATE / "remote").absolute()
    exchange = Exchange(folder / "code.git", folder / "data", folder / "results")
    exchange.data.mkdir(parents=True, exist_ok=True)
    exchange.results.mkdir(parents=True, exist_ok=True)
    if not exchange.code.exists():
        run(root, ["git", "init", "--quiet", "--bare", str(exchange.code)])
    dvc(root, "remote", "add", "--local", "--force", REMOTE, str(exchange.data))
    return exchange


def publish_code(root: Path, exchange: Exchange) -> str:
    """Puts the working tree, uncommitted edits included, into the shared repository; returns the commit.

    Neither the index nor any branch of the workspace is touched.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        run(root, ["git", "read-tree", "HEAD"], index)
        run(root, ["git", "add", "--all", "."], index)
        tree = run(root, ["git", "write-tree"], index).strip()
    author = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in {
            "NAME": "prefloop",
            "EMAIL": "prefloop@localhost",
            "DATE": "2000-01-01T00:00:00Z",
        }.items()
    }
    commit = run(root, ["git", "commit-tree", tree, "-p", "HEAD", "-m", "a workspace"], author).strip()
    run(root, ["git", "push", "--quiet", "--force", str(exchange.code), f"{commit}:refs/prefloop/{commit}"])
    return commit


def fetch_code(clone: Path, code: str, commit: str) -> None:
    """Brings a worker's clone to a published commit; what DVC tracks and the clone's state stay."""
    if not (clone / ".git").exists():
        clone.mkdir(parents=True, exist_ok=True)
        run(clone, ["git", "init", "--quiet"])
    run(clone, ["git", "fetch", "--quiet", "--depth", "1", "--", code, f"refs/prefloop/{commit}"])
    run(clone, ["git", "checkout", "--quiet", "--force", "--detach", commit])
    run(clone, ["git", "clean", "--quiet", "-fd"])


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


def run(folder: Path, command: Sequence[str], extra: Mapping[str, str] | None = None) -> str:
    """Runs a short command to its end.

    Raises:
        WorkspaceError: it failed; what it said is in the message.
    """
    done = subprocess.run(
        list(command), cwd=folder, env=child_environment(extra), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise WorkspaceError(f"`{' '.join(command)}` failed in {folder}: {said}")
    return done.stdout
