"""Attempts at a stage on a pool: each one flow run, of which at most one counts.

The idempotency key of a flow run is `KEY:ATTEMPT`. The key follows from what the stage computes, not from
who asks for it: a coordinator that was killed, or a second one, finds what a worker already does and joins
it. The number tells attempts apart: the key alone would give back a run that failed.

An attempt that is given up is fenced: a tag that only a coordinator writes says so. Its worker ends when it
sees that, and nobody takes its result any more, however late it comes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.planning.contents import present
from flows.planning.planner import open_repo, pipeline_stages

if TYPE_CHECKING:
    from dvc.stage import PipelineStage
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

LOST = "prefloop-lost"
"""Tag of an attempt that was given up."""
MOST = 100
"""Attempts of one stage that a server is asked for at once (count)."""


def stage_key(root: Path, stage: str, where: Mapping[str, str]) -> str:
    """A hash of what a stage computes (command, parameters, contents of its inputs) and of where.

    Every input has to be there, in the workspace or in dvc.lock.

    Args:
        where: what else tells one asking from another, such as the pool.
    """
    stages = pipeline_stages(open_repo(root))
    wanted = next(other for other in stages if other.name == stage)
    read = {str(dep.def_path): _read(dep, stages) for dep in wanted.deps}
    text = json.dumps([stage, str(wanted.cmd), read, dict(where)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(dep: Any, stages: list[PipelineStage]) -> Any:
    """What a stage reads by one dependency: values of parameters, or hashes of contents."""
    from dvc.dependency.param import ParamsDependency

    if isinstance(dep, ParamsDependency):
        return dep.read_params()
    path = Path(dep.fs_path)
    outs = [out for stage in stages for out in stage.outs]
    made = [out for out in outs if path == (made_at := Path(out.fs_path)) or path in made_at.parents]
    made = made or [out for out in outs if Path(out.fs_path) in path.parents]
    if made:  # dvc.lock has it, wherever the content is
        return {str(out.def_path): str(out.hash_info.value if out.hash_info else None) for out in made}
    content = present(dep)
    return str(content[0].value) if content else None


def latest(client: SyncPrefectClient, key: str) -> tuple[int, FlowRun | None]:
    """Number and flow run of the last attempt with this key; (0, None) where there is none."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey

    number, found = 0, None
    while True:
        keys = [f"{key}:{number + offset}" for offset in range(1, MOST + 1)]
        wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
        runs = {str(run.idempotency_key): run for run in client.read_flow_runs(flow_run_filter=wanted)}
        new = next((offset for offset in range(MOST, 0, -1) if keys[offset - 1] in runs), 0)
        if not new:
            return number, found
        number, found = number + new, runs[keys[new - 1]]


def attempt(
    client: SyncPrefectClient,
    key: str,
    begin: Callable[[str], FlowRun],
    has_result: Callable[[FlowRun], bool],
) -> tuple[int, FlowRun, bool]:
    """Joins the last attempt, or begins the next one.

    Args:
        begin: makes the flow run of an idempotency key, or gives the one that another made meanwhile.
        has_result: tells whether what a completed flow run made is still there.

    Returns:
        Number of the attempt, its flow run, and whether it was there already.
    """
    number, run = latest(client, key)
    if run is not None and run.state is not None and not is_fenced(run):
        live = not run.state.is_final() and not run.state.is_cancelling()
        done = run.state.is_completed()
        if live or (done and has_result(run)):
            return number, run, True
    return number + 1, begin(f"{key}:{number + 1}"), False


def is_fenced(run: FlowRun) -> bool:
    """True when an attempt was given up: its result counts no more."""
    return LOST in run.tags


def fence(client: SyncPrefectClient, run: FlowRun, why: str) -> None:
    """Gives an attempt up: the tag comes first, so that no other one runs while this one counts."""
    from prefect.states import Crashed

    client.update_flow_run(run.id, tags=sorted({*run.tags, LOST}))
    client.set_flow_run_state(run.id, Crashed(message=why), force=True)
