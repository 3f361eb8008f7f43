"""The flow that a worker runs: one stage in the worker's own clone of the workspace.

Clones lie under PREFLOOP_WORKER_FOLDER, ~/.prefloop/workers by default: a folder a workspace, in it a clone a
stage and one DVC cache for all of them.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.planning.planner import is_preparation, open_repo, pipeline_stages
from flows.preparation import run_preparation
from flows.stage_run import run_stage
from flows.supervision import supervise
from flows.workers.alive import stage_gpus, told
from flows.workers.exchange import REMOTE, dvc, fetch_code, write_lock
from flows.workers.trust import check_job
from prefloop.files import write_json
from tasks.support.workspace import slug


@flow(name="prefloop-stage", flow_run_name="{stage}", persist_result=False)
@told
def remote_stage(
    stage: str,
    commit: str,
    code: str,
    data: str,
    results: str,
    lock: str,
    pipeline: str,
    gpus: int = 0,
    lost_seconds: float = 45.0,
    force: bool = False,
) -> None:
    """Runs one stage and leaves its dvc.lock entry in the shared folder.

    Args:
        stage: name as in dvc.yaml; empty only resolves the worker's environment.
        commit: published commit of the workspace.
        code, data, results: shared git repository, DVC remote, and folder of results.
        lock: text of the coordinator's dvc.lock; it says which inputs to fetch.
        pipeline: id of the pipeline run.
        gpus: of the pool, and of this machine, that the stage has for itself (count).
        lost_seconds: after so long without a sign of life the coordinator gives this attempt up (seconds).
        force: run the stage although nothing changed.

    Raises:
        ConfigError: the job asks for something else; see `flows.workers.trust`.
    """
    check_job(stage=stage, commit=commit, pipeline=pipeline, code=code, data=data, results=results)
    logger = get_run_logger()
    clone = clone_folder(code, stage or "environment")
    fetch_code(clone, code, commit)
    _configure(clone, data)

    def show(what: str, line: str) -> None:
        logger.info("%s  %s", what, line)

    with supervise(clone, pipeline, logger.info) as supervisor:
        repo = open_repo(clone)
        run_preparation(supervisor, repo, show)
        result: dict[str, Any] = {"outcome": "", "entry": None, "files": _uncached(clone, preparation=True)}
        if stage:
            _set_lock(clone, lock)
            inputs = produced_inputs(clone, stage)
            if inputs:
                dvc(clone, "pull", "--force", "--remote", REMOTE, *inputs)
            done = run_stage(supervisor, stage, show, force=force, pull=True, extra=stage_gpus(clone))
            dvc(clone, "push", "--run-cache", "--remote", REMOTE, stage)
            files = result["files"] | _uncached(clone, stage=stage)
            result = {"outcome": done.outcome.name, "entry": _entry(clone, stage), "files": files}
    write_json(Path(results) / f"{flow_run.get_id()}.json", result)


def clone_folder(code: str, stage: str) -> Path:
    """Where this worker keeps its clone for a stage of the workspace that publishes to `code`."""
    folder = Path(os.environ.get("PREFLOOP_WORKER_FOLDER") or Path.home() / ".prefloop" / "workers")
    return folder.absolute() / hashlib.sha256(code.encode()).hexdigest()[:16] / slug(stage)


def produced_inputs(root: Path, stage: str) -> list[str]:
    """Paths, relative to the root, that the stage reads and other stages write into DVC's cache."""
    from dvc.dependency.param import ParamsDependency

    stages = pipeline_stages(open_repo(root))
    outs = [Path(out.fs_path) for other in stages for out in other.outs if out.use_cache]
    wanted = next(other for other in stages if other.name == stage)
    found: list[str] = []
    for dep in wanted.deps:
        path = Path(dep.fs_path)
        if isinstance(dep, ParamsDependency):
            continue
        if any(out == path or out in path.parents for out in outs):
            found.append(path.relative_to(root.absolute()).as_posix())
        else:  # a folder in which several stages write
            below = [out for out in outs if path in out.parents]
            found += [out.relative_to(root.absolute()).as_posix() for out in below]
    return found


def _configure(clone: Path, data: str) -> None:
    cache = clone.parent / "cache"
    dvc(clone, "remote", "add", "--local", "--force", "--default", REMOTE, data)
    dvc(clone, "config", "--local", "cache.dir", str(cache))


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
