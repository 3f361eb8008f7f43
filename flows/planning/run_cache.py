"""Looks into DVC's run-cache: has a stage run before with inputs that need not exist yet?

DVC offers no public way to ask; what is private of it is used here and nowhere else in planning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc.dependency.param import ParamsDependency
from dvc.stage.cache import _get_cache_hash
from dvc.stage.serialize import to_single_stage_lockfile
from dvc_data.hashfile.hash_info import HashInfo

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage
    from dvc_data.hashfile.meta import Meta

    from flows.planning.code import CodeNow


def find_outputs(
    repo: Repo, stage: PipelineStage, inputs: Mapping[str, tuple[HashInfo, Meta]], code: CodeNow
) -> dict[str, tuple[HashInfo, Meta]] | None:
    """Outputs of the newest earlier run with the same command, parameters and inputs; None without one.

    Args:
        inputs: content hash of every dependency but the parameters, by absolute path.
        code: the code with which it would run.

    Returns:
        Absolute path of each output -> its hash.
    """
    folder = _folder(repo, stage, inputs, code)
    entries = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    if not entries:
        return None
    cached = repo.stage_cache._load_cache(folder.name, entries[-1].name)
    if not cached:
        return None
    restored = repo.stage_cache._create_stage(cached, wdir=stage.wdir)
    if not restored.outs_cached():
        return None
    return {out.fs_path: (out.hash_info, out.meta) for out in restored.outs}


def _folder(
    repo: Repo, stage: PipelineStage, inputs: Mapping[str, tuple[HashInfo, Meta]], code: CodeNow
) -> Path:
    """Where DVC keeps runs of the stage with these inputs."""
    before = [(dep, dep.hash_info, dep.meta) for dep in stage.deps]
    try:
        for dep in stage.deps:
            if isinstance(dep, ParamsDependency):
                values: Any = code.read_params(dep)
                dep.hash_info = HashInfo(dep.PARAM_PARAMS, values)
            else:
                dep.hash_info, dep.meta = inputs[dep.fs_path]
        key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
    finally:
        for dep, hash_info, meta in before:
            dep.hash_info, dep.meta = hash_info, meta
    return Path(repo.stage_cache._get_cache_dir(key))
