"""`prefloop plan`: what would run, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows import settings
from flows.cli.output import say
from flows.leftovers import unfinished

EPILOG = "Examples: prefloop plan; prefloop plan evaluate; prefloop plan --json"


def command(
    stages: Annotated[list[str] | None, typer.Argument(help="Stages; all by default.")] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Leave out what is unchanged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Say what `prefloop run` would do: for each stage, which file or parameter changed, and how."""
    root = Path(".")
    settings.apply(root)
    from flows.placement import decide, placed
    from flows.planning import show
    from flows.planning.planner import make_plan, open_repo
    from flows.preparation import refresh
    from flows.workspace_lock import live_run
    from prefloop.config.params import load_params

    load_params(root / "params.yaml")
    repo = open_repo(root)
    placement, known = decide(root, repo), True
    if live_run(root) is None:  # a run has its own, which has to stand until it ends
        known = refresh(root, repo, placement)
    plan = placed(make_plan(repo, stages or (), interrupted=unfinished(root)), placement, root, known=known)
    if as_json:
        print(json.dumps(show.as_json(plan), indent=2))
        return
    for line in show.plan_lines(plan, skipped=not changed):
        say(line)
    for path, stage in plan.edited.items():
        say(f"{path} was changed by hand (stage {stage} writes it): prefloop run will refuse to overwrite it")
