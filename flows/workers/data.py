"""Outputs on their way between DVC's cache here and the workers' remote, object by object."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.leftovers import unfinished
from flows.planning.absent import REMOTE
from flows.planning.contents import present, recoverable
from flows.planning.planner import open_repo
from flows.rescue import refuse
from flows.storage import StorageAway, answering
from flows.workers.exchange import merge_lock
from prefloop.errors import WorkspaceError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

WEIGHTS = "models/"
"""What lies below is left in the remote until somebody reads it; all else that a stage writes is small."""


def produced_inputs(repo: Repo, stage: str) -> list[Output]:
    """Outputs of other stages, and data that DVC tracks, which the stage reads; not what is in git."""
    from dvc.dependency.param import ParamsDependency

    outs = [out for out in repo.index.outs if out.use_cache]
    found: dict[str, Output] = {}
    for dep in _stage(repo, stage).deps:
        if isinstance(dep, ParamsDependency):
            continue
        path = Path(dep.fs_path)
        for out in outs:
            written = Path(out.fs_path)
            if written == path or written in path.parents or path in written.parents:
                found[out.fs_path] = out
    return list(found.values())


def push(repo: Repo, outs: Iterable[Output]) -> None:
    """Copies what the remote lacks of outputs that the cache has; a folder's listing goes after its files.

    Raises:
        StorageAway: something could not be written.
    """
    with _asking(repo) as place:
        objects = _objects(out for out in outs if not out.changed_cache())
        failed = repo.cloud.push(objects, remote=REMOTE).failed if objects else ()
        _complain(failed, f"written to {place}")


def fetch(repo: Repo, outs: Sequence[Output]) -> None:
    """Brings what the cache lacks of outputs from the remote; the workspace stays as it is.

    Raises:
        StorageAway: something could not be read.
        WorkspaceError: the remote does not have it.
    """
    lacking = [out for out in outs if out.changed_cache()]
    if not lacking:
        return
    with _asking(repo) as place:
        objects = _objects(lacking)
        failed = repo.cloud.pull(objects, remote=REMOTE).failed if objects else ()
        _complain(failed, f"read from {place}")
        lost = [str(out) for out in lacking if out.changed_cache()]
        if lost:
            raise WorkspaceError(
                f"{', '.join(lost)} is neither here nor in {place}", "run again: what is nowhere is made anew"
            )


def bring_home(repo: Repo, outs: Iterable[Output], *, replace: bool = False) -> list[str]:
    """Puts outputs that are absent here into the workspace, and returns their paths.

    Args:
        replace: those that are here, and not as dvc.lock says, too; else they stay as they are.
    """
    wanted = [out for out in outs if out.use_cache and out.hash_info]
    wanted = [out for out in wanted if not out.exists or (replace and out.changed_checksum())]
    fetch(repo, wanted)
    for out in wanted:
        out.checkout(force=replace)
    return [str(out) for out in wanted]


def take_over(root: Path, stage: str, entry: dict[str, Any] | None = None) -> None:
    """Makes a worker's result this workspace's: its entry of dvc.lock, its small outputs. Weights stay away:
    of those only the listing of their files comes, and what earlier ones lie here go.

    Args:
        entry: of dvc.lock; None where it is there already.

    Raises:
        WorkspaceError: an output was changed by hand, and exists nowhere else.
    """
    repo = open_repo(root)
    if entry is not None:
        if stage not in unfinished(root):
            new = {out["path"]: out.get("md5") for out in entry.get("outs", ())}
            refuse({str(out): stage for out in _stage(repo, stage).outs if _edited(out, new)})
        merge_lock(root, stage, entry)
        repo = open_repo(root)
    outs = [out for out in _stage(repo, stage).outs if out.use_cache and out.hash_info]
    small = [out for out in outs if not str(out.def_path).startswith(WEIGHTS)]
    fetch(repo, small)
    for out in outs:
        if out in small or not out.changed_cache():
            out.checkout(force=True)
            continue
        with _asking(repo):
            if out.is_dir_checksum:
                out.get_dir_cache(remote=REMOTE)
        if not out.changed_cache():  # with its listing it is whole: its files equal small ones that came home
            out.checkout(force=True)
        elif out.exists and out.changed_checksum():
            _remove(Path(out.fs_path))


def _edited(out: Output, new: dict[str, Any]) -> bool:
    here = present(out) if out.use_cache else None
    if here is None or here[0] == out.hash_info or here[0].value == new.get(str(out.def_path)):
        return False
    return not recoverable(out, here)


def _stage(repo: Repo, name: str) -> Any:
    return next(stage for stage in repo.index.stages if getattr(stage, "name", None) == name)


@contextmanager
def _asking(repo: Repo) -> Iterator[str]:
    """Yields what the remote is called in errors; DVC's own words about it are left out."""
    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # and with it, its progress bars
    place = str(repo.config["remote"][REMOTE]["url"])
    with answering(place):
        yield place


def _objects(outs: Iterable[Output]) -> set[Any]:
    """Every file of outputs, and the listings of those that are folders."""
    found: set[Any] = set()
    for out in outs:
        for objects in out.get_used_objs(remote=REMOTE).values():
            found |= objects
    return found


def _complain(failed: Collection[object], what: str) -> None:
    if failed:
        raise StorageAway(
            f"{len(failed)} files could not be {what}", "see that it is up and has room, then run again"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
