"""Makes good what a tracking server that was away did not get: spooled events, a promotion not applied."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from flows.preparation import run_command
from flows.stage_run import StageFailed
from flows.supervision import Supervisor
from prefloop.files import read_json
from tasks.support.spool import waiting

DECISION = Path("metrics/promote.json")


def deliver_late(supervisor: Supervisor, show: Callable[[str, str], None]) -> None:
    """For a run without work of its own, whose delivery process never starts. A server that is still away is
    told of, and fails nothing."""
    runs = 0 if os.environ.get("PREFLOOP_TRACKING") == "off" else waiting()
    if not runs:
        return
    show("tracking", f"delivering what {runs} run(s) could not deliver")
    try:
        run_command(supervisor, "tracking", "python -m tasks.deliver", show)
    except StageFailed:
        show("tracking", "the tracking server is still away: nothing is lost, the next run tries again")
        return
    decision = supervisor.root / DECISION
    if decision.exists() and "because" in read_json(decision):  # why it could not be applied
        run_command(supervisor, "promote", "python -m tasks.promote", show)
