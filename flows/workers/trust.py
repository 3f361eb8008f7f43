"""What a worker takes from a Prefect server: stages by name, commits by hash, the exchange that is its own.

Whoever can reach a Prefect server can ask its workers for work. What a job names is therefore held against
what the worker itself knows: it runs the stages of a workspace, and no other command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from flows.storage import checked_place
from prefloop.errors import ConfigError

FOLDER = "PREFLOOP_REMOTE"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_STAGE = re.compile(r"[A-Za-z0-9][\w-]*(@[A-Za-z0-9][\w-]*)?", re.ASCII)
_PIPELINE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_REMEDY = f"set {FOLDER} to the shared folder or bucket where this worker runs, as for `prefloop run --on`"


def check_job(*, stage: str, commit: str, pipeline: str, exchange: str) -> str:
    """Refuses a job that names anything but a stage, a commit and this worker's exchange.

    The exchange has to be the one that PREFLOOP_REMOTE names where the worker runs; where it names none, a
    folder that belongs to the worker's own user, as that of a workspace on the same machine does.

    Returns:
        The exchange as this worker itself names it.

    Raises:
        ConfigError: which part of the job is refused, and why.
    """
    for what, value, form in (
        ("stage", stage or "environment", _STAGE),
        ("commit", commit, _COMMIT),
        ("pipeline", pipeline, _PIPELINE),
    ):
        if not form.fullmatch(value):
            raise ConfigError(f"this worker was asked for the {what} {value[:80]!r}, which is none: refused")
    named = os.environ.get(FOLDER)
    if named:
        place = checked_place(named, FOLDER)
        if exchange != place and ("://" in place or Path(exchange).resolve() != Path(place).resolve()):
            raise ConfigError(
                f"this worker was asked to run code from {exchange[:200]!r}, which is not {place}: refused",
                _REMEDY,
            )
        return place
    folder = Path(exchange)
    if "://" in exchange or not folder.is_absolute() or ".." in folder.parts:
        raise ConfigError(f"this worker was asked to run code from {exchange[:200]!r}: refused", _REMEDY)
    if not folder.is_dir() or folder.stat().st_uid != os.getuid():
        raise ConfigError(
            f"this worker was asked to run code from {exchange}, which is not its own user's: refused",
            _REMEDY,
        )
    return exchange


def check_files(paths: Iterable[str], declared: Collection[str]) -> None:
    """Refuses files from a worker that no stage declares: the coordinator writes them nowhere else.

    Args:
        paths: of the files, as a worker's result names them. declared: paths that dvc.yaml declares.

    Raises:
        ConfigError: a path that is not declared.
    """
    for path in paths:
        if path not in declared:
            raise ConfigError(
                f"a worker sent the file {path!r}, which no stage declares: refused",
                "look at that worker: it runs other code than this workspace, or somebody answers for it",
            )
