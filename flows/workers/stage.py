"""The flow that a worker runs: one stage in the worker's own clone of the workspace.

Clones lie under PREFLOOP_WORKER_FOLDER, ~/.prefloop/workers by default: a folder a workspace, in it a clone a
stage and one DVC cache for all of them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.planning.planner import is_preparation, open_repo, pipeline_stages
from flows.preparation import run_preparation
from flows.settings import STATE
from flows.stage_run import run_stage
from flows.storage import StorageAway
from flows.supervision import supervise
from flows.workers.alive import stage_gpus, told
from flows.workers.checkpoints import SharedCheckpoints
from flows.workers.code import fetch_code
from flows.workers.data import bring_home, produced_inputs, push
from flows.workers.deliveries import deliver, remove, send_home, server_named
from flows.workers.exchange import DATA, Exchange, tell_dvc, write_lock
from flows.workers.folder import clone_folder
from flows.workers.trust import check_job
from tasks.support.code import all_code
from tasks.support.keys import stage_key
from tasks.support.workspace import slug


@flow(name="prefloop-stage", flow_run_name="{stage}", persist_result=False)
@told
def remote_stage(
    stage: str,
    commit: str,
    exchange: str,
    lock: str,
    pipeline: str,
    gpus: int = 0,
    lost_seconds: float = 45.0,
    force: bool = False,
) -> None:
    """Runs one stage and leaves its dvc.lock entry in the exchange.

    Args:
        stage: name as in dvc.yaml; empty only resolves the worker's environment.
        commit: published commit of the workspace.
        exchange: folder or URL through which coordinator and worker exchange; see flows/workers/exchange.py.
        lock: text of the coordinator's dvc.lock; it says which inputs to fetch.
        pipeline: id of the pipeline run.
        gpus: of the pool, and of this machine, that the stage has for itself (count).
        lost_seconds: after so long without a sign of life the coordinator gives this attempt up (seconds).
        force: run the stage although nothing changed.

    Raises:
        ConfigError: the job asks for something else; see `flows.workers.trust`.
    """
    place = check_job(stage=stage, commit=commit, pipeline=pipeline, exchange=exchange)
    logger = get_run_logger()
    shared = Exchange(place)
    clone = clone_folder(place, stage or "environment")
    fetch_code(clone, shared.storage, commit)
    tell_dvc(clone, shared.data, cache=clone.parent / "cache")

    def show(what: str, line: str) -> None:
        logger.info("%s  %s", what, line)

    with supervise(clone, pipeline, logger.info) as supervisor:
        repo = open_repo(clone)
        run_preparation(supervisor, repo, show)
        result: dict[str, Any] = {"outcome": "", "entry": None, "files": _uncached(clone, preparation=True)}
        if not stage:
            shared.write_result(str(flow_run.get_id()), result)
            return
        _set_lock(clone, lock)
        repo = open_repo(clone)
        bring_home(repo, produced_inputs(repo, stage), replace=True)
        checkpoints = SharedCheckpoints(shared.storage, _scratch(clone, stage), logger.info)
        checkpoints.fetch()
        extra = stage_gpus(clone) | ({} if server_named(clone) else {"PREFLOOP_TRACKING": "off"})
        try:
            with checkpoints.shared():
                done = run_stage(supervisor, stage, show, force=force, pull=True, extra=extra)
        except BaseException:
            deliver(clone, logger.warning, hurried=True)
            raise
        deliver(clone, logger.warning)
        _push(clone, stage, shared)
        files = result["files"] | _uncached(clone, stage=stage)
        result = {"outcome": done.outcome.name, "entry": _entry(clone, stage), "files": files}
        me = str(flow_run.get_id())
        sent = send_home(shared.storage, clone, me)
        shared.write_result(me, result)
        remove(sent)
        with suppress(StorageAway):  # what stays behind is in nobody's way
            checkpoints.remove()


def _scratch(clone: Path, stage: str) -> Path:
    """The folder that the stage keeps what it can go on from in, as tasks/support/stage.py names it."""
    code = all_code(clone).get(stage.partition("@")[0])
    return clone / STATE / "scratch" / slug(stage) / stage_key(stage, {}, clone, code)


def _push(clone: Path, stage: str, shared: Exchange) -> None:
    """Puts the stage's outputs into the remote, then the entries of the run-cache that it lacks."""
    repo = open_repo(clone)
    outs = [out for found in pipeline_stages(repo) if found.name == stage for out in found.outs]
    push(repo, [out for out in outs if out.use_cache])
    cache, there = Path(repo.cache.local_cache_dir), shared.storage.sizes(f"{DATA}/runs")
    for path in (cache / "runs").glob("*/*/*"):
        name = f"{DATA}/{path.relative_to(cache).as_posix()}"
        if name not in there:
            shared.storage.put(path, name)


def _set_lock(clone: Path, lock: str) -> None:
    from dvc.utils.serialize import parse_yaml

    if lock:
        write_lock(clone / "dvc.lock", parse_yaml(lock, "dvc.lock"))


def _entry(clone: Path, stage: str) -> Any:
    from dvc.utils.serialize import load_yaml

    return load_yaml(str(clone / "dvc.lock"))["stages"][stage]


def _uncached(clone: Path, *, stage: str = "", preparation: bool = False) -> dict[str, str]:
    """Text of the small outputs that DVC does not keep, by path."""
    files = {}
    for other in pipeline_stages(open_repo(clone)):
        if other.name == stage or (preparation and is_preparation(other)):
            for out in other.outs:
                if not out.use_cache:
                    path = Path(out.fs_path)
                    files[path.relative_to(clone).as_posix()] = path.read_text(encoding="utf-8")
    return files
