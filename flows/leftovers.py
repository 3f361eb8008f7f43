"""What a run that was killed left behind: processes, and marks of stages that it did not finish."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path

from flows.settings import STATE
from prefloop.errors import WorkspaceError
from tasks.support.locks import holder
from tasks.support.process import ProcessId, end_group
from tasks.support.workspace import slug

GRACE_SECONDS = 30.0


def end_leftovers(root: Path) -> list[str]:
    """Ends the processes that an earlier run of this workspace recorded and that still live; nobody else's.

    Returns:
        What was ended, for people.

    Raises:
        WorkspaceError: a stage is being run by hand (`dvc repro`, `python -m tasks.sft`) at this moment.
    """
    ended = []
    for record in sorted((root / STATE / "children").glob("*.json")):
        value = _read(record)
        if value is not None and ProcessId(int(value["pid"]), float(value["started"])).alive():
            end_group(int(value["pid"]), signal.SIGINT, GRACE_SECONDS)
            ended.append(f"{value['what']} (pid {value['pid']})")
        record.unlink(missing_ok=True)
    for lock in sorted((root / STATE / "locks").glob("*.lock")):
        found = holder(lock)
        if lock.stem == "workspace" or found is None or found.process is None or not found.process.alive():
            continue
        if not found.pipeline:
            raise WorkspaceError(
                f"stage {lock.stem} is being run by hand in this workspace (pid {found.process.pid})",
                f"wait until it ends, or end it: kill {found.process.pid}",
            )
        end_process(found.process)
        ended.append(f"stage {lock.stem} (pid {found.process.pid})")
    return ended


def end_process(process: ProcessId) -> None:
    """Asks one process to end, and kills it after the grace."""
    import psutil

    try:
        handle = psutil.Process(process.pid)
        handle.terminate()
        handle.wait(GRACE_SECONDS)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        if process.alive():
            handle.kill()
            handle.wait(5)


def mark_unfinished(root: Path, stage: str) -> None:
    """Says that `stage` is being run, until `mark_finished`: what it leaves when cut off is nobody's work."""
    path = _mark(root, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(stage, encoding="utf-8")


def mark_finished(root: Path, stage: str) -> None:
    """Takes the mark back."""
    _mark(root, stage).unlink(missing_ok=True)


def unfinished(root: Path) -> set[str]:
    """Stages that were cut off or failed, and have not been run to their end since."""
    return {path.read_text(encoding="utf-8") for path in (root / STATE / "unfinished").glob("*")}


def in_hand(root: Path) -> set[str]:
    """Stages that a process works at now, here; as their locks are named."""
    locks = (root / STATE / "locks").glob("*.lock")
    return {lock.stem for lock in locks if lock.stem != "workspace" and holder(lock) is not None}


def settle(root: Path, up_to_date: Iterable[str]) -> None:
    """Takes back the marks of stages that are up to date: their run was cut off after DVC had recorded them.

    A mark that stayed would have a later edit by hand taken for something that a cut-off stage left.
    """
    for stage in unfinished(root).intersection(up_to_date):
        mark_finished(root, stage)


def _mark(root: Path, stage: str) -> Path:
    return root / STATE / "unfinished" / slug(stage)


def _read(record: Path) -> dict[str, str] | None:
    try:
        value = json.loads(record.read_text(encoding="utf-8"))
        return {name: str(value[name]) for name in ("pid", "started", "what")}
    except (OSError, ValueError, KeyError):
        return None
