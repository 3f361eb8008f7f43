"""The lock of a workspace: one run, or one command that changes it, at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.settings import STATE
from tasks.support.locks import held, holder

_LOCK = STATE / "locks" / "workspace.lock"


@contextmanager
def hold_workspace(root: Path, name: str) -> Iterator[None]:
    """Holds it for the length of the block.

    Args:
        name: who holds it: id of a run, or a command.

    Raises:
        WorkspaceError: another live process holds it.
    """
    with held(root / _LOCK, f"the workspace {root.absolute()}", name=name):
        yield


def live_run(root: Path) -> tuple[int, str] | None:
    """Pid and id of the run, or the name of the command, that holds the workspace; None when it is free."""
    found = holder(root / _LOCK)
    return (found.process.pid, found.pipeline or "another command") if found and found.process else None
