"""Whether there is work for a run, told by the plan alone: no stage starts for it, and no server."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException

from flows.leftovers import unfinished
from flows.planning.model import Action
from flows.planning.planner import is_preparation, make_plan, open_repo, pipeline_stages
from flows.promotion import promotion_due
from prefloop.data.importing import SOURCES
from prefloop.errors import PrefloopError


@dataclass(frozen=True)
class Work:
    """What a run would find.

    Attributes:
        needed: a stage would run, be restored, or might; or a decision on promotion is due.
        fresh: stages that read data/sources/ and count as up to date.
    """

    needed: bool
    fresh: tuple[str, ...] = ()


def find_work(root: Path) -> Work:
    """Plans with environment and code as the last run resolved them: an edit of code is no change of data.

    Where no plan can be made, a run is needed: it says what is wrong.
    """
    try:
        with closing(open_repo(root)) as repo:  # a watch opens many
            stages = pipeline_stages(repo)
            prepared = [out for stage in stages if is_preparation(stage) for out in stage.outs]
            if not all(Path(out.fs_path).exists() for out in prepared):
                return Work(needed=True)
            plan = make_plan(repo, interrupted=unfinished(root))
    except (PrefloopError, DvcException, OSError):
        return Work(needed=True)
    folder = str((root / SOURCES).absolute())
    readers = {stage.name for stage in stages if any(str(dep.fs_path) == folder for dep in stage.deps)}
    fresh = tuple(stage.name for stage in plan.with_action(Action.SKIP) if stage.name in readers)
    return Work(not plan.nothing_to_do or promotion_due(root, plan), fresh)
