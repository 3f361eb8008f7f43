"""Content hashes of what stages read and write: as they stand, and as they will be after a restore."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dvc.fs import localfs
from dvc_data.hashfile.hash import hash_file
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree

if TYPE_CHECKING:
    from dvc.dependency.base import Dependency
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo

Content = tuple["HashInfo", "Meta"]


def present(item: Output) -> Content | None:
    """What lies at an output's or dependency's path; None where nothing does.

    Files unchanged since they were last hashed are not read again: DVC remembers size, time and inode.
    """
    if not item.exists:
        return None
    meta, hash_info = item._get_hash_meta()
    return hash_info, meta


def recoverable(item: Output, content: Content) -> bool:
    """True when DVC's cache holds this content, so that overwriting the path loses nothing."""
    odb = item.cache if item.use_cache else item.local_cache
    return bool(content[0].value and odb.exists(content[0].value))


class Forecast:
    """Knows what each output will hold when its stage has been dealt with; None: not before it ran."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._producers: dict[str, str] = {}
        self._contents: dict[str, Content | None] = {}
        self._files: dict[str, Content | None] = {}
        self._expected: set[str] = set()

    def record(self, stage: str, path: str, content: Content | None, *, expected: bool = False) -> None:
        """Says what output `path` (absolute) of `stage` will hold; `expected` when it is not certain."""
        self._producers[path] = stage
        self._contents[path] = content
        if expected:
            self._expected.add(path)

    def is_expected(self, dep: Dependency) -> bool:
        """True when what is said of a dependency is not certain."""
        path = str(dep.fs_path)
        return any(path == out or _inside(path, out) or _inside(out, path) for out in self._expected)

    def of(self, dep: Dependency) -> tuple[Content | None, str]:
        """A dependency's content, and the stages on which it depends when it cannot be known yet.

        Returns:
            (content, ""), (None, "") for a missing file that nobody writes, or (None, names of stages).
        """
        path = str(dep.fs_path)
        above = [out for out in self._producers if path == out or _inside(path, out)]
        below = [out for out in self._producers if _inside(out, path)]
        unknown = sorted({self._producers[out] for out in above + below if self._contents[out] is None})
        if unknown:
            return None, ", ".join(unknown)
        if dep.fs_path in self._contents:
            return self._contents[dep.fs_path], ""
        if below:
            return self._folder(Path(path), below), ""
        if dep.fs_path not in self._files:  # most code is read by many stages
            self._files[dep.fs_path] = present(dep)
        return self._files[dep.fs_path], ""

    def _folder(self, path: Path, outs: list[str]) -> Content:
        """Hash of a folder in which several stages write a file each."""
        tree = cast(Any, Tree)()
        for out in outs:
            content = self._contents[out]
            assert content is not None
            tree.add(Path(out).relative_to(path).parts, content[1], content[0])
        stray = [file for file in sorted(path.rglob("*")) if file.is_file() and str(file) not in outs]
        for file in stray:
            meta, hash_info = hash_file(str(file), localfs, "md5", state=self._repo.state)
            tree.add(file.relative_to(path).parts, meta, hash_info)
        tree.digest()
        return tree.hash_info, Meta(isdir=True)


def _inside(path: str, folder: str) -> bool:
    """True when `path` lies under `folder`, both absolute; texts, since a plan asks this 100,000 times."""
    return path.startswith(folder + os.sep)
