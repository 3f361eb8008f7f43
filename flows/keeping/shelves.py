"""Where DVC keeps objects and run-cache entries: the workspace's own cache, or the remote of its workers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flows.storage import Storage

if TYPE_CHECKING:
    from dvc.repo import Repo

_NAMES = ("md5", "md5-dos2unix")
_BATCH = 500
"""Files that are read or removed by one call."""


@dataclass(frozen=True)
class Stored:
    """One file.

    Attributes:
        name: an object's hash; of an entry of the run-cache, its path.
        size: bytes.
        changed: when it came here (seconds since the epoch).
    """

    name: str
    size: int
    changed: float


class Shelf(Protocol):
    """What housekeeping asks of either."""

    def objects(self) -> Iterable[Stored]:
        """Every object."""

    def entries(self) -> Iterable[tuple[Stored, bytes]]:
        """Every entry of the run-cache, with what it says."""

    def read(self, hashes: Collection[str]) -> dict[str, bytes]:
        """Objects by hash; those that are not there are left out."""

    def remove(self, entries: Collection[str], objects: Collection[str]) -> None:
        """Removes entries first, since one without its objects serves nobody; then objects.

        What came since they were looked at stays, since nobody judged it.
        """


class LocalShelf:
    """The workspace's DVC cache."""

    def __init__(self, repo: Repo) -> None:
        self._odbs = [repo.cache.local, repo.cache.legacy]
        self._folder = Path(repo.cache.local_cache_dir)

    def objects(self) -> Iterator[Stored]:
        """Every object; those of DVC 2's cache, which has another layout, included."""
        for odb in self._odbs:
            for name in odb.all():
                yield _stored(name, Path(odb.oid_to_path(name)))

    def entries(self) -> Iterator[tuple[Stored, bytes]]:
        for path in sorted((self._folder / "runs").glob("*/*/*")):
            yield _stored(path.relative_to(self._folder).as_posix(), path), path.read_bytes()

    def read(self, hashes: Collection[str]) -> dict[str, bytes]:
        paths = {
            name: path
            for odb in self._odbs
            for name in hashes
            if (path := Path(odb.oid_to_path(name))).is_file()
        }
        return {name: path.read_bytes() for name, path in paths.items()}

    def remove(self, entries: Collection[str], objects: Collection[str]) -> None:
        from dvc_data.hashfile.gc import gc
        from dvc_data.hashfile.hash_info import HashInfo

        logging.getLogger("dvc").setLevel(logging.ERROR)  # and with it, its progress bars
        for name in entries:
            path = self._folder / name
            path.unlink(missing_ok=True)
            for folder in (path.parent, path.parent.parent):
                if not any(folder.iterdir()):
                    folder.rmdir()
        for odb in self._odbs:
            used = [HashInfo(name, value) for value in odb.all() if value not in objects for name in _NAMES]
            gc(odb, used)


class RemoteShelf:
    """The DVC remote below an exchange.

    Args:
        storage: the exchange.
        folder: of the remote in it.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder

    def objects(self) -> Iterator[Stored]:
        for path, (size, changed) in self._storage.listing(f"{self._folder}/files/md5").items():
            yield Stored("".join(path.split("/")[-2:]), size, changed)

    def entries(self) -> Iterator[tuple[Stored, bytes]]:
        found = self._storage.listing(f"{self._folder}/runs")
        for path, content in self._read(found):
            size, changed = found[path]
            yield Stored(path.removeprefix(f"{self._folder}/"), size, changed), content

    def read(self, hashes: Collection[str]) -> dict[str, bytes]:
        names = {self._path(name): name for name in hashes}
        return {names[path]: content for path, content in self._read(names)}

    def remove(self, entries: Collection[str], objects: Collection[str]) -> None:
        listings_first = sorted(objects, key=lambda name: not name.endswith(".dir"))
        for names in _batches([f"{self._folder}/{name}" for name in entries]):
            self._storage.remove_all(names)
        for names in _batches([self._path(name) for name in listings_first]):
            self._storage.remove_all(names)

    def _path(self, name: str) -> str:
        return f"{self._folder}/files/md5/{name[:2]}/{name[2:]}"

    def _read(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for names in _batches(sorted(paths)):
            yield from self._storage.read_all(names).items()


def _batches(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]


def _stored(name: str, path: Path) -> Stored:
    stat = path.stat()
    return Stored(
        name, stat.st_size, max(stat.st_mtime, stat.st_ctime)
    )  # a moved file keeps its time of change
