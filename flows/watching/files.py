"""Files as a poll sees them: signatures at each look, hashes only of files whose signature changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from prefloop.files import sha256_file

Signature = tuple[int, int, int, int]
"""Size (bytes), times of the last change of content and of inode (ns), inode number."""
Looks = dict[str, Signature]
"""Path, relative to the folder that was looked at, with slashes -> signature."""

UNFINISHED: Final = (".tmp", ".part", ".partial", ".crdownload", ".filepart", ".swp", "~")
"""Endings by which programs name a file until it is whole."""


def signature(path: Path | str) -> Signature | None:
    """The signature of what lies at `path`, links followed; None where nothing does."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def look(folder: Path, *, without: Iterable[str] = ()) -> Looks:
    """Signatures of the files below a folder; hidden and unfinished ones, by their names, are left out.

    Args:
        without: folders directly below that are left out, too.
    """
    found: Looks = {}
    left_out = set(without)
    for here, folders, names in os.walk(folder):
        top = Path(here) == folder
        folders[:] = [n for n in folders if not _hidden(n) and not (top and n in left_out)]
        for name in names:
            path = Path(here, name)
            if not _hidden(name) and (state := signature(path) or _broken_link(path)):
                found[path.relative_to(folder).as_posix()] = state
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith(UNFINISHED)


def _broken_link(path: Path) -> Signature | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None  # it went away between two system calls
    return (
        (0, status.st_mtime_ns, status.st_ctime_ns, status.st_ino) if stat.S_ISLNK(status.st_mode) else None
    )


class Hashes:
    """SHA-256 of files; a file is read again only when its signature changed.

    Args:
        known: what `as_values` gave, from an earlier process.
    """

    def __init__(self, known: Mapping[str, list[object]] | None = None) -> None:
        self._known: dict[str, tuple[Signature, str]] = {}
        for path, (*state, digest) in (known or {}).items():
            size, changed, inode_changed, inode = (int(str(number)) for number in state)
            self._known[path] = (size, changed, inode_changed, inode), str(digest)

    def of(self, path: Path) -> str:
        """Hash of a file.

        Raises:
            OSError: it cannot be read.
        """
        state = signature(path)
        known = self._known.get(str(path))
        if known is not None and known[0] == state:
            return known[1]
        digest = sha256_file(path)
        if state is not None and state == signature(path):  # else it changed while it was read
            self._known[str(path)] = state, digest
        return digest

    def keep(self, paths: Iterable[Path]) -> None:
        """Forgets all files but these."""
        kept = {str(path) for path in paths}
        self._known = {path: value for path, value in self._known.items() if path in kept}

    def as_values(self) -> dict[str, list[object]]:
        """What is known, as JSON can hold it."""
        return {path: [*state, digest] for path, (state, digest) in self._known.items()}


def free_name(target: Path) -> Path:
    """The path itself, or a neighbour's that nothing has: a delivery that waits is not written over."""
    free, number = target, 1
    while os.path.lexists(free):
        number += 1
        free = target.with_name(f"{number}-{target.name}")
    return free
