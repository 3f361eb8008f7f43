"""The flow that a Prefect deployment runs when data changes: a labelled batch, a webhook, an automation.

It hands over what it was given to the workspace's incoming folder and does what `prefloop watch --once` does.
Where a watch is live in the workspace, handing over is enough.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger

from flows.settings import STATE, child_environment
from flows.stage_run import StageFailed
from flows.watching.files import free_name
from flows.watching.incoming import INCOMING, TAKEN
from prefloop.data.importing import load_format
from prefloop.errors import ConfigError, DataError
from prefloop.files import atomic_file, sha256_text
from tasks.support.locks import holder
from tasks.support.process import lifeline

KEPT_LINES = 12


@flow(name="prefloop-data-change", persist_result=False)
def data_change(
    workspace: str,
    rows: list[dict[str, Any]] | None = None,
    files: list[str] | None = None,
    format: str = "native",
    arguments: list[str] | None = None,
) -> str:
    """Takes a batch into a workspace and runs what it changes; a batch that was taken before runs nothing.

    Args:
        workspace: folder of the workspace, on the machine of the worker.
        rows: rows of the batch, as `format` has them.
        files: files of the batch, which stay where they are.
        format: as `prefloop data formats` names them.
        arguments: passed on to `prefloop run`.

    Returns:
        "ran", or "handed over" where a live watch does the rest.

    Raises:
        PrefloopError: no workspace, no such file or format, or the run failed.
    """
    logger = get_run_logger()
    root = Path(workspace).absolute()
    if not (root / "dvc.yaml").exists():
        raise ConfigError(f"{root} is no workspace: there is no dvc.yaml", "name its folder on the worker")
    for name in hand_over(root, rows or (), files or (), format):
        logger.info("handed over: %s", name)
    lock = root / STATE / "watch.lock"
    if holder(lock) is not None:
        return "handed over"
    command = [sys.executable, "-m", "flows.cli.main", "watch", "--once", "--", *(arguments or ())]
    lines: list[str] = []
    with lifeline(root / STATE / f"data-change-{os.getpid()}.lifeline") as variables:
        environment = {
            name: value
            for name, value in child_environment(variables).items()
            if not name.startswith("PREFECT__")  # the run is a flow of its own, no part of this one
        }
        child = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            lines = [*lines[1 - KEPT_LINES :], line.rstrip("\n")]
            logger.info("%s", lines[-1])
        status = child.wait()
    if status and holder(lock) is None:
        raise StageFailed("of the run on changed data", status, root / STATE / "logs", lines)
    return "ran" if not status else "handed over"


def hand_over(root: Path, rows: Sequence[dict[str, Any]], files: Sequence[str], format: str) -> list[str]:
    """Puts a batch into the incoming folder, each file whole or not at all.

    Rows are named by their hash: the same batch again is the same file.

    Raises:
        DataError: no such format or file; nothing is handed over then.
    """
    load_format(format)
    folder = root / INCOMING / format
    for file in files:
        if not Path(file).is_file():
            raise DataError(f"{file} is missing, or no file", "name files that this worker can read")
    handed = []
    if rows:
        text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        name = f"batch-{sha256_text(text)[:16]}.jsonl"
        if not (root / INCOMING / TAKEN / format / name).exists():
            with atomic_file(folder / name) as handle:
                handle.write(text)
            handed.append(name)
    for file in files:
        target = free_name(folder / Path(file).name)
        with atomic_file(target, "wb") as handle, open(file, "rb") as source:
            shutil.copyfileobj(source, handle)
        handed.append(target.name)
    return handed
