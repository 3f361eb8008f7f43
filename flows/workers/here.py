"""What a workspace whose stages run on workers does itself: it decides what needs no worker, and fetches what
is read here, when it is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flows.leftovers import mark_finished, unfinished
from flows.planning.absent import Absent, has_remote
from flows.planning.model import Action, StagePlan
from flows.planning.planner import make_plan, open_repo
from flows.stage_run import Outcome, StageResult, run_stage
from flows.supervision import Supervisor
from flows.workers.data import bring_home, produced_inputs, take_over

Show = Callable[[str, str], None]


def run_here(
    supervisor: Supervisor,
    stage: StagePlan,
    show: Show,
    *,
    force: bool = False,
    extra: Mapping[str, str] | None = None,
) -> StageResult:
    """Runs a stage in this workspace, after it fetched what the stage reads of workers' results.

    Args:
        force, extra: see `flows.stage_run.run_stage`.

    Raises:
        StageFailed: the command failed.
        StorageAway: what it reads is not here, and the remote does not answer.
    """
    root, started = supervisor.root, time.monotonic()
    if has_remote(root):
        outcome = settled(root, stage)
        if outcome is not None:
            return StageResult(stage.name, outcome, time.monotonic() - started)
        repo = open_repo(root)
        for path in bring_home(repo, produced_inputs(repo, stage.name)):
            show(stage.name, f"{path} was fetched from the workers' remote")
    return run_stage(supervisor, stage.name, show, force=force, extra=extra)


def settled(root: Path, stage: StagePlan) -> Outcome | None:
    """What comes of a stage whose command need not run now that its parents have ended, and makes it so;
    None for one that has to run.

    A stage that would run if what it reads changed is asked about once more. What is missing of its outputs
    is put back, but for weights that the remote has.
    """
    action = stage.action
    if action in (Action.MAYBE, Action.STAYS):
        plan = make_plan(open_repo(root), [stage.name], interrupted=unfinished(root))
        action = next(found.action for found in plan.stages if found.name == stage.name)
    if action is Action.SKIP:
        return Outcome.SKIPPED
    if action is not Action.RESTORE:
        return None
    repo = open_repo(root)
    absent = Absent(repo)
    outs = [
        out for found in repo.index.stages if getattr(found, "name", "") == stage.name for out in found.outs
    ]
    if not any(absent.held(out) for out in outs) or any(
        out.changed_cache() and not absent.held(out) for out in outs
    ):
        return None  # DVC restores it from the cache
    take_over(root, stage.name)
    mark_finished(root, stage.name)
    return Outcome.RESTORED


def bring_model(root: Path, name: str, say: Callable[[str], None]) -> None:
    """Fetches a model that a worker made and that is not here; what else `name` may mean is left alone."""
    candidates = (Path("models") / name, Path(name))
    if any((root / path).exists() for path in candidates) or not has_remote(root):
        return
    repo = open_repo(root)
    wanted = [out for out in repo.index.outs if Path(str(out.def_path)) in candidates]
    absent = Absent(repo)
    for out in wanted:
        if absent.held(out):
            say(f"{out} is in the workers' remote: fetching it (dvc pull {out} does the same)")
    bring_home(repo, [out for out in wanted if absent.held(out)])
