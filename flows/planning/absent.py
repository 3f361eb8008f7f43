"""Outputs that are not in this workspace, nor in its cache, and that the workers' remote has: they count as
done. What a worker made stays in the remote until somebody reads it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.storage import StorageAway, answering

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

REMOTE = "prefloop-workers"
"""Name of the DVC remote through which coordinator and workers exchange."""


def has_remote(root: Path) -> bool:
    """True when the workspace has exchanged with workers, without opening DVC."""
    path = root / ".dvc" / "config.local"
    return path.exists() and REMOTE in path.read_text(encoding="utf-8")


class Absent:
    """Asked lazily, once for all outputs: a workspace that has everything never speaks to the remote."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._place = str(repo.config["remote"].get(REMOTE, {}).get("url") or "")

    def held(self, out: Output) -> bool:
        """True for an output whose content, as dvc.lock has it, is in the remote and not in the cache here.

        Raises:
            StorageAway: the remote does not answer.
        """
        return bool(self._place and out.hash_info and out.use_cache and out.fs_path in self._held)

    @cached_property
    def _held(self) -> set[str]:
        """Absolute paths of such outputs."""
        remote: Any = self._repo.cloud.get_remote_odb(REMOTE)
        outs = [
            out for out in self._repo.index.outs if out.use_cache and out.hash_info and out.changed_cache()
        ]
        if outs and "://" not in self._place and not Path(self._place).is_dir():
            raise StorageAway(
                f"{outs[0]} is not here, and {self._place}, where workers left it, is not there",
                "mount the shared folder, or remove dvc.lock's entry of the stage to make it anew",
            )
        with answering(self._place):
            needed = {out.fs_path: self._objects(out, remote) for out in outs}
            asked = set().union(*(objects for objects in needed.values() if objects))
            there = set(remote.list_oids_exists(sorted(asked))) if asked else set()
        return {path for path, objects in needed.items() if objects and objects <= there}

    def _objects(self, out: Output, remote: Any) -> set[str] | None:
        """Names of all objects that an output consists of; None where the remote does not know them."""
        name = str(out.hash_info.value)
        if not out.is_dir_checksum:
            return {name}
        tree = out.get_dir_cache(remote=REMOTE)
        if tree is not None:
            return {name, *(str(entry.value) for _, _, entry in tree)}
        if remote.fs.exists(remote.oid_to_path(name)):  # raises where the remote does not answer
            raise StorageAway(f"{self._place} has the listing of {out}, and does not give it", "run again")
        return None
