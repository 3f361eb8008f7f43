"""A code edit that changes no result need not cost a training run: results are taken over, with the reason.

Reasons are kept in accepted.jsonl, one line a stage; the file belongs into git, beside dvc.lock.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from flows.leftovers import unfinished
from flows.planning.code import CodeNow
from flows.planning.model import Action
from flows.planning.planner import make_plan, open_repo, pipeline_stages, select
from flows.preparation import refresh
from flows.workspace_lock import hold_workspace
from prefloop.errors import ConfigError
from tasks.support.runs import git_state

REASONS = Path("accepted.jsonl")


def accept(root: Path, target: str, why: str) -> dict[str, list[str]]:
    """Takes over the results of a stage whose code alone changed.

    Args:
        target: a stage, or the name of all its parts.
        why: the reason, for whoever reads the history.

    Returns:
        Stage -> what differed.

    Raises:
        ConfigError: no reason given, nothing differs, or more than code differs.
    """
    if not why.strip():
        raise ConfigError("a reason is needed", 'prefloop accept STAGE --why "..."')
    with hold_workspace(root, "prefloop accept"):
        repo = open_repo(root)
        refresh(root, repo)
        plan = make_plan(repo, [target], interrupted=unfinished(root))
        names = select(pipeline_stages(repo), [target])
        asked = [stage for stage in plan.stages if stage.name in names]
        changed = [stage for stage in asked if stage.action not in (Action.SKIP, Action.STAYS)]
        if not changed:
            raise ConfigError(f"{target} is up to date: there is nothing to accept")
        differences = {}
        for stage in changed:
            other = [str(reason) for reason in stage.reasons if reason.kind != "code"]
            if other or stage.edited:
                raise ConfigError(
                    f"{stage.name} differs in more than code: {', '.join([*other, *stage.edited])}",
                    "results follow from these, so the stage has to run",
                )
            differences[stage.name] = [str(reason) for reason in stage.reasons]
        code = CodeNow(root)
        for name in differences:
            code.take_over(name)
            repo.commit(name, force=True)
        _keep(root, differences, why)
    return differences


def _keep(root: Path, differences: dict[str, list[str]], why: str) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    commit = git_state(root)["git_commit"]
    with open(root / REASONS, "a", encoding="utf-8") as handle:
        for stage, reasons in differences.items():
            line = {"stage": stage, "why": why, "differences": reasons, "when": when, "git_commit": commit}
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
