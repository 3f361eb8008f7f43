"""Housekeeping from end to end: looks at the workspace while nothing runs in it, and removes what may go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from flows.keeping import cache, exchange
from flows.keeping.logs import find_logs, find_tests
from flows.keeping.model import Category, Found, Item
from flows.keeping.needs import Needs, has_store
from flows.keeping.scratch import find_scratch
from flows.keeping.trash import Trash
from flows.planning.absent import has_remote
from flows.planning.planner import open_repo
from flows.preparation import refresh
from flows.settings import STATE
from flows.storage import StorageAway
from flows.workspace_lock import hold_workspace
from prefloop.errors import WorkspaceError
from tasks.support.locks import held, holder
from tasks.support.mlflow_store import StoreAway, reached, read_config
from tasks.support.workspace import state_folder

if TYPE_CHECKING:
    from tasks.support.retention import Judged


@contextmanager
def at_rest(root: Path) -> Iterator[None]:
    """Takes the workspace for the length of the block.

    Raises:
        WorkspaceError: a run, a stage or a DVC command is live in it, or delivers to MLflow.
    """
    if state_folder() != (root / STATE).absolute():
        raise WorkspaceError(
            f"this folder keeps its state elsewhere, in {state_folder()}", "collect in the workspace itself"
        )
    with ExitStack() as stack:
        locks = root / STATE / "locks"
        stack.enter_context(hold_workspace(root, "prefloop gc"))
        for lock in sorted(locks.glob("*.lock")):
            found = holder(lock) if lock.stem != "workspace" else None
            if found is not None:
                pid = found.process.pid if found.process else "unknown"
                raise WorkspaceError(
                    f"stage {lock.stem} is being run in this workspace (pid {pid})", "wait until it ends"
                )
        if pids := _dvc_processes(root):
            raise WorkspaceError(f"DVC works in this workspace (pid {pids[0]})", "wait until it ends")
        stack.enter_context(held(state_folder() / "spool/delivery.lock", "the tracking spool"))
        yield


class Sweep:
    """One look at a workspace that is at rest, and the removal of what it found.

    Args:
        older_than: what is younger stays (seconds).
        shared_cache: collect where others may have their objects, too.
    """

    def __init__(
        self, root: Path, categories: Sequence[Category], older_than: float, *, shared_cache: bool = False
    ) -> None:
        self._root = root
        self._repo = open_repo(root)
        self._trash = Trash(root)
        refresh(root, self._repo)
        self._needs = Needs(root, self._repo, time.time() - older_than)
        self._shared_cache = shared_cache
        self._paths: dict[Category, list[Path]] = {}
        self._expired: list[Judged] = []
        self._exchange: exchange.ExchangeSweep | None = None
        look: dict[Category, Callable[[], Found]] = {
            Category.SCRATCH: lambda: self._files(
                Category.SCRATCH, find_scratch(root, self._repo, self._needs.since)
            ),
            Category.CACHE: self._cache,
            Category.EXCHANGE: self._of_workers,
            Category.RUNS: self._runs,
            Category.LOGS: lambda: self._files(
                Category.LOGS, find_logs(root, self._needs.since, self._needs.runs)
            ),
            Category.TESTS: lambda: self._files(Category.TESTS, find_tests(root)),
        }
        self.found = tuple(look[category]() for category in categories)

    def remove(self) -> None:
        """Removes what goes. A kill at any moment leaves a workspace that works; the next call finishes."""
        for found in self.found:
            if found.blocked:
                continue
            if found.category is Category.CACHE:
                with self._repo.lock:
                    self._needs.cache.remove(self._needs.here)
            if found.category is Category.EXCHANGE and self._exchange:
                self._exchange.remove()
            if found.category is Category.RUNS and self._expired:
                self._delete_runs()
            for path in self._paths.get(found.category, ()):
                self._trash.take(path)
                lock = path.with_suffix(".lock")
                if found.category is Category.SCRATCH and lock.is_file():
                    lock.unlink()
        self._trash.empty()

    def _files(self, category: Category, pairs: Iterator[tuple[Path, Item]]) -> Found:
        found = list(pairs)
        self._paths[category] = [path for path, item in found if item.goes]
        return Found(category, tuple(item for _, item in found))

    def _cache(self) -> Found:
        if why := self._must_stay(cache.shared_with(self._repo)):
            return Found(Category.CACHE, blocked=why)
        return Found(Category.CACHE, tuple(self._needs.cache.items(self._needs.here, Category.CACHE)))

    def _of_workers(self) -> Found:
        if not has_remote(self._root):
            return Found(Category.EXCHANGE)
        if why := self._must_stay(exchange.shared_with()):
            return Found(Category.EXCHANGE, blocked=why)
        self._exchange = exchange.ExchangeSweep(self._root, self._needs)
        try:
            return Found(Category.EXCHANGE, tuple(self._exchange.look()))
        except StorageAway as away:
            self._exchange = None
            return Found(Category.EXCHANGE, blocked=away.message)

    def _must_stay(self, others: str) -> str:
        """Why objects of DVC cannot be judged now; "" where they can."""
        if others and not self._shared_cache:
            return f"{others}: others may need what is in it. --shared-cache says that nobody does"
        try:
            _ = self._needs.keys
        except StoreAway as away:
            return f"what registered models need is not known: {away.message}"
        return ""

    def _runs(self) -> Found:
        records = [
            (path, Item(Category.RUNS, "record", path.name, path.stat().st_size, not why, why or "old"))
            for path, _, why in self._needs.pipelines
        ]
        try:
            judged = self._judge_runs()
        except StoreAway as away:
            return Found(Category.RUNS, blocked=away.message)
        self._paths[Category.RUNS] = [path for path, item in records if item.goes]
        self._expired = [run for run in judged if run.expired]
        runs = [Item(Category.RUNS, "run", run.name, run.size, run.expired, run.reason) for run in judged]
        return Found(Category.RUNS, (*runs, *(item for _, item in records)))

    def _judge_runs(self) -> list[Judged]:
        known = self._needs.registered
        if known is None or not has_store():
            return []
        with reached(read_config()) as store:
            from tasks.support.retention import judge_runs

            return judge_runs(store, self._needs.runs, known, self._needs.since)

    def _delete_runs(self) -> None:
        with reached(read_config()) as store:
            from tasks.support.retention import delete_runs

            for _ in delete_runs(store, self._expired):
                continue


def _dvc_processes(root: Path) -> list[int]:
    """Pids of living DVC commands that noted what they read and write."""
    try:
        noted = json.loads((root / ".dvc/tmp/rwlock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    users = [
        user
        for uses in noted.values()
        for user in [*uses.get("read", ()), *([uses["write"]] if uses.get("write") else ())]
    ]
    return sorted({user["pid"] for user in users if psutil.pid_exists(user["pid"])})
