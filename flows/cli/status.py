"""`prefloop status`: what is running, what is there, how the policies compare."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

EPILOG = "Examples: prefloop status; prefloop status --json"


def command(as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False) -> None:
    """Say whether a run is live, what is up to date, what the latest run cost, how the policies compare."""
    from flows import settings
    from flows.cli.output import say
    from flows.leftovers import in_hand, unfinished
    from flows.planning.planner import make_plan, open_repo
    from flows.planning.show import as_json as plan_values
    from flows.planning.show import cost_words, summary
    from flows.preparation import refresh
    from flows.summary import REPORT, evaluation, policy_table
    from flows.workspace_lock import live_run
    from tasks.support.records import local_records
    from tasks.support.spool import waiting

    root = Path(".")
    settings.apply(root)
    live = live_run(root)
    repo = open_repo(root)
    if live is None:
        refresh(root, repo)
    plan = make_plan(repo, interrupted=unfinished(root))
    latest = next(reversed(local_records()), None)
    if as_json:
        values: dict[str, Any] = {
            "live_run": {"pid": live[0], "id": live[1], "stages": sorted(in_hand(root))} if live else None,
            "unfinished": sorted(unfinished(root)),
            "stages": plan_values(plan),
            "policies": evaluation(root).get("policies", {}),
            "report": str(REPORT) if (root / REPORT).exists() else None,
            "latest_run": {name: latest.get(name) for name in ("run", "status", "cost")} if latest else None,
            "runs_waiting_for_mlflow": waiting(),
        }
        print(json.dumps(values, indent=2))
        return
    at = in_hand(root)
    words = f": {', '.join(sorted(at))}" if at else ""
    say(f"{live[1]} is live (pid {live[0]}){words}" if live else "no run is live")
    if cut_off := unfinished(root) if live is None else set():
        say(f"cut off or failed: {', '.join(sorted(cut_off))}; the next run with the same parameters goes on")
    say(summary(plan))
    if latest and latest.get("cost"):
        took = cost_words(latest["cost"])
        say(f"latest run {latest['run']} ({latest['status'].lower()}): its stages took {took}")
    for line in policy_table(root):
        say(line)
    if (root / REPORT).exists():
        print(f"\nreport: {REPORT}")
    if live is None and (count := waiting()):
        print(f"\n{count} runs wait for MLflow: delivering", flush=True)
        subprocess.run([sys.executable, "-m", "tasks.deliver"], env=settings.child_environment(), check=False)
