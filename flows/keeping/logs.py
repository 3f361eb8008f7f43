"""Logs, tracebacks, what is left of delivered spool files; and what test tools keep between their runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from flows.keeping.model import Category, Item, newest, size_of
from flows.settings import STATE
from tasks.support.spool import read_state, spool_folder
from tasks.support.workspace import state_folder

TOOLS = (".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")


def find_logs(root: Path, since: float, runs: Collection[str]) -> Iterator[tuple[Path, Item]]:
    """Logs of stages, tracebacks, and notes about delivered runs.

    Args:
        since: what changed later stays (seconds since the epoch).
        runs: that stay: whoever links to one asks its note for MLflow's id.
    """
    for folder, kind in ((root / STATE / "logs", "log"), (state_folder() / "crashes", "traceback")):
        for path in sorted(path for path in folder.glob("*") if path.is_file()):
            yield path, _item(path, kind, "" if newest(path) < since else "too young")
    spool = spool_folder()
    for path in sorted(spool.glob("*.state")):
        reason = ""
        if path.with_suffix(".jsonl").exists() or not read_state(path.with_suffix(".jsonl")).get("ended"):
            reason = "not delivered to its end"
        elif path.stem in runs:
            reason = "its run stays"
        elif newest(path) >= since:
            reason = "too young"
        yield path, _item(path, "delivered", reason)
    for path in sorted(spool.glob("*.files")):
        waits = path.with_suffix(".jsonl").exists()
        young = newest(path) >= since
        yield path, _item(path, "delivered", "a model in it waits" if waits else "too young" if young else "")


def find_tests(root: Path) -> Iterator[tuple[Path, Item]]:
    """Folders of pytest, mypy, ruff and hypothesis, which these make again."""
    for path in sorted(root / name for name in TOOLS):
        if path.is_dir():
            why = "a tool makes it again"
            yield path, Item(Category.TESTS, "folder", path.name, size_of(path), True, why)


def _item(path: Path, kind: str, kept: str) -> Item:
    name = path.relative_to(path.parents[1]).as_posix()
    return Item(Category.LOGS, kind, name, size_of(path), not kept, kept or "old")
