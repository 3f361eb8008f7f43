"""data/sources/ by content: what it holds whatever files are called, and pointers whose data is not here."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dvc.exceptions import DvcException

from flows.planning.contents import present, recoverable
from flows.planning.planner import open_repo
from flows.watching.files import Hashes, Looks, look
from flows.workers.exchange import dvc
from prefloop.data.importing import SOURCES
from prefloop.errors import WorkspaceError
from prefloop.files import sha256_text

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

_IN_VERSION: Final = re.compile(r"\d{3,}-\w+/")
_POINTER: Final = ".dvc"
_NO_DATA: Final = ("README.md",)


class Sources:
    """What lies in data/sources/ of a workspace.

    Args:
        hashes: what is known of files from before.
    """

    def __init__(self, root: Path, hashes: Hashes) -> None:
        self._root = root
        self._folder = root / SOURCES
        self._hashes = hashes

    def look(self) -> Looks:
        """Signatures of data and pointers; cheap, for every poll."""
        return {name: state for name, state in look(self._folder).items() if name not in _NO_DATA}

    def content(self) -> str:
        """Hash of the data: of each file's content, and its place in its version. Names beyond that, times
        and order do not count, nor do pointers.

        Raises:
            OSError: a file went away or cannot be read.
        """
        names = [name for name in self.look() if not name.endswith(_POINTER)]
        parts = sorted((_place(name), self._hashes.of(self._folder / name)) for name in names)
        self._hashes.keep(self._folder / name for name in names)
        return sha256_text(json.dumps(parts))

    def pointers(self) -> dict[str, str]:
        """Pointer -> hash of its text."""
        found = sorted(self._folder.glob(f"*{_POINTER}"))
        return {path.name: sha256_text(path.read_text("utf-8", "replace")) for path in found}

    def behind(self, known: dict[str, str]) -> bool:
        """True when a pointer is another than `known`, or the data of one is not here."""
        now = self.pointers()
        return any(
            known.get(name) != text or not (self._folder / name.removesuffix(_POINTER)).exists()
            for name, text in now.items()
        )

    def fetch(self) -> list[str]:
        """Brings data to what its pointers say, from DVC's cache or remote; data that is nowhere else stays.

        Returns:
            Pointers whose data came.

        Raises:
            PrefloopError: DVC cannot bring it; or a pointer cannot be read.
        """
        try:
            with closing(open_repo(self._root)) as repo:
                wanted = [out for out in self._outs(repo) if _is_behind(out)]
                here = [out for out in wanted if not out.changed_cache()]
        except DvcException as error:
            raise WorkspaceError(f"DVC cannot tell whether {SOURCES} is up to date: {error}") from error
        for command, outs in (("checkout", here), ("pull", [out for out in wanted if out not in here])):
            if outs:
                dvc(self._root, "--wait-for-lock", command, "--quiet", *map(_path_of_pointer, outs))
        return [Path(_path_of_pointer(out)).name for out in wanted]

    def _outs(self, repo: Repo) -> list[Output]:
        folder = self._folder.absolute()
        return [
            out
            for stage in repo.index.stages
            if Path(stage.path).suffix == _POINTER and Path(stage.path).absolute().parent == folder
            for out in stage.outs
        ]


def _is_behind(out: Output) -> bool:
    here = present(out)
    return here is None or (here[0] != out.hash_info and recoverable(out, here))


def _path_of_pointer(out: Output) -> str:
    return str(out.stage.path)


def _place(name: str) -> str:
    """A file's place inside its version; the kind of its rows. Of loose files nothing counts but content."""
    found = _IN_VERSION.match(name)
    return name[found.end() :] if found else ""
