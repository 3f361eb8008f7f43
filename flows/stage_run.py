"""Runs one stage through DVC in a process of its own, and says what came of it."""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flows.history import remember
from flows.leftovers import mark_finished, mark_unfinished
from flows.settings import STATE
from flows.supervision import Supervisor
from prefloop.errors import PrefloopError
from tasks.support.redact import redact
from tasks.support.workspace import slug

DVC_CHATTER = (
    "Running stage ", "Stage '", "> ", "Generating lock file", "Updating lock file", "Going to reproduce",
    "To track the changes", "\tgit add", "To enable auto staging", "\tdvc config", "Use `dvc push`",
    "Checking out", "Pulling data", "ERROR: failed to reproduce", "WARNING: Failed to pull run cache",
)  # fmt: skip
EMPTY_FILE = re.compile(r"WARNING: '.*' is empty\.$")
"""DVC warns of every empty file; a kind of rows that a run does not have is one."""
KEPT_LINES = 12


class Outcome(StrEnum):
    """What came of a stage, as Prefect's states call it."""

    RAN = "Completed"
    RESTORED = "Restored"
    SKIPPED = "Skipped"


@dataclass(frozen=True)
class StageResult:
    """A stage that ended well.

    Attributes:
        seconds: wall time, DVC's own included.
        faults: of the infrastructure, a line for each attempt that was lost to one.
    """

    name: str
    outcome: Outcome
    seconds: float
    faults: tuple[str, ...] = ()


class StageFailed(PrefloopError):
    """A stage's command failed; its own message was shown as it ran.

    Attributes:
        stage: which one.
    """

    def __init__(self, stage: str, exit_code: int, log: Path, lines: list[str]) -> None:
        shown = "\n".join(f"    {line}" for line in lines)
        super().__init__(
            f"stage {stage} failed with exit code {exit_code}"
            + (f"; its last words:\n{shown}" if lines else ""),
            f"mend the cause and run again: it continues where it can. The whole output is in {log}",
        )
        self.stage = stage
        self.exit_code = exit_code


def run_stage(
    supervisor: Supervisor,
    stage: str,
    show: Callable[[str, str], None],
    *,
    force: bool = False,
    pull: bool = False,
    extra: Mapping[str, str] | None = None,
) -> StageResult:
    """`dvc repro --single-item STAGE`; DVC decides by itself once more whether the stage has to run.

    Args:
        show: receives (stage, line) for every line that the stage prints.
        force: run it although nothing changed.
        pull: look into the DVC remote's run-cache, and fetch inputs that are missing.
        extra: further environment variables of the stage.

    Raises:
        StageFailed: the command failed, or DVC could not run it.
        flows.supervision.Stopped: the run was asked to end.
    """
    command = [sys.executable, "-m", "flows.dvc_process", "--wait-for-lock", "repro", "--single-item", stage]
    command += ["--force"] if force else []
    command += ["--pull"] if pull else []
    log = supervisor.root / STATE / "logs" / f"{slug(stage)}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    recent: deque[str] = deque(maxlen=KEPT_LINES)
    outcome, exit_code = Outcome.RAN, 0
    mark_unfinished(supervisor.root, stage)
    with open(log, "w", encoding="utf-8") as handle:

        def on_line(line: str) -> None:
            nonlocal outcome, exit_code
            line = redact("line", line)
            handle.write(line + "\n")
            handle.flush()
            if "is cached - skipping run" in line:
                outcome = Outcome.RESTORED
            elif "didn't change, skipping" in line:
                outcome = Outcome.SKIPPED
            elif found := re.search(r"exited with (-?\d+)", line):
                exit_code = int(found[1])
            if line.strip() and not line.startswith(DVC_CHATTER) and not EMPTY_FILE.match(line):
                recent.append(line)
                show(stage, line)

        status = supervisor.run(command, f"stage {stage}", on_line, extra=extra)
    if status:
        raise StageFailed(
            stage, _as_shell(exit_code or status), log.relative_to(supervisor.root), list(recent)
        )
    mark_finished(supervisor.root, stage)
    seconds = time.monotonic() - started
    if outcome is Outcome.RAN:
        remember(supervisor.root, stage, seconds, supervisor.pipeline)
    return StageResult(stage, outcome, seconds)


def _as_shell(code: int) -> int:
    """A signal's negative code as shells give it; DVC's own 255 as 1."""
    return 128 - code if code < 0 else 1 if code == 255 else code
