"""DVC's cache: objects, and entries of the run-cache by which a stage is restored instead of run.

`dvc gc` knows what branches, tags and the working tree refer to. It does not know registered models, runs of
the last weeks whose dvc.lock nobody committed, or the run-cache; so what is needed is gathered here, and DVC
removes the rest.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaml import YAMLError

from flows.keeping.model import Category, Item
from flows.keeping.references import References
from tasks.support.code import parse_yaml

if TYPE_CHECKING:
    from dvc.repo import Repo

UNNEEDED = "nothing refers to it"
_NAMES = ("md5", "md5-dos2unix")
_RECORD_BYTES = 2**20


@dataclass(frozen=True)
class Entry:
    """One entry of the run-cache: a stage as it ran once.

    Attributes:
        outs, deps: path -> hash.
        changed: when it was written (seconds since the epoch).
        record: what its runs/<stage>.json says; empty where it has none.
    """

    path: Path
    outs: Mapping[str, str]
    deps: frozenset[str]
    changed: float
    record: Mapping[str, Any] = field(default_factory=dict)


class Cache:
    """The workspace's DVC cache.

    Attributes:
        folder: where it lies.
        entries: of its run-cache.
    """

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._odbs = [repo.cache.local, repo.cache.legacy]
        self.folder = Path(repo.cache.local_cache_dir)
        self.entries = [self._entry(path) for path in sorted((self.folder / "runs").glob("*/*/*"))]

    def shared_with(self) -> str:
        """Why others may use this cache, too; empty for a workspace's own."""
        own = (Path(self._repo.root_dir) / ".dvc").resolve()
        if not self.folder.resolve().is_relative_to(own):
            return f"DVC's cache lies outside of this workspace, in {self.folder}"
        return "DVC's cache is set up to be shared" if self._repo.config["cache"].get("shared") else ""

    def needed(self, references: References, keys: Mapping[str, str], since: float) -> dict[str, str]:
        """Hash -> what needs it.

        Args:
            references: what git refers to.
            keys: stage keys that something needs, with what that is: their outputs stay, and those of all
                that they were made of.
            since: what entered the cache later stays (seconds since the epoch).
        """
        found: dict[str, str] = {}
        self._add(found, references.hashes, "a branch, tag, stash or file here names it")
        for reason in dict.fromkeys(keys.values()):
            asked = [entry for entry in self.entries if keys.get(str(entry.record.get("key"))) == reason]
            for entry in self._with_ancestors(asked):
                self._add(found, entry.outs.values(), reason)
        for entry in self.entries:
            if entry.changed >= since:
                self._add(found, entry.outs.values(), "too young")
        young = [name for name, path in self._objects() if _changed(path) >= since]
        self._add(found, young, "too young")
        return found

    def records(self, hashes: Iterable[str]) -> list[Mapping[str, Any]]:
        """What files in runs/ say, by their hashes; those that the cache does not hold are left out."""
        return [record for name in sorted(set(hashes)) if (record := self._record(name))]

    def items(self, needed: Mapping[str, str]) -> list[Item]:
        """Every object and entry, and what becomes of it."""
        found = []
        for name, path in self._objects():
            reason = needed.get(name)
            size = path.stat().st_size
            found.append(Item(Category.CACHE, "object", name, size, reason is None, reason or UNNEEDED))
        for entry in self.entries:
            lost = self._is_useless(entry, needed)
            reason = "what it restores goes" if lost else "what it restores stays"
            name = entry.path.relative_to(self.folder).as_posix()
            size = entry.path.stat().st_size
            found.append(Item(Category.CACHE, "run-cache entry", name, size, lost, reason))
        return found

    def remove(self, needed: Mapping[str, str]) -> None:
        """Removes the rest: entries first, since one without its objects serves nobody, then objects."""
        from dvc_data.hashfile.gc import gc
        from dvc_data.hashfile.hash_info import HashInfo

        logging.getLogger("dvc").setLevel(logging.ERROR)  # and with it, its progress bars
        for entry in self.entries:
            if self._is_useless(entry, needed):
                entry.path.unlink(missing_ok=True)
                for folder in (entry.path.parent, entry.path.parent.parent):
                    if not any(folder.iterdir()):
                        folder.rmdir()
        used = [HashInfo(name, value) for value in needed for name in _NAMES]
        for odb in self._odbs:
            gc(odb, used)

    def _is_useless(self, entry: Entry, needed: Collection[str]) -> bool:
        return any(value not in needed for value in entry.outs.values()) or not entry.outs

    def _objects(self) -> list[tuple[str, Path]]:
        """Hash and file of every object; those of DVC 2's cache, which has another layout, included."""
        return [(name, Path(odb.oid_to_path(name))) for odb in self._odbs for name in odb.all()]

    def _path(self, name: str) -> Path | None:
        paths = (Path(odb.oid_to_path(name)) for odb in self._odbs)
        return next((path for path in paths if path.is_file()), None)

    def _add(self, found: dict[str, str], names: Iterable[str], reason: str) -> None:
        """Notes objects, and what lies in those that are folders."""
        for name in names:
            if name in found:
                continue
            found[name] = reason
            path = self._path(name) if name.endswith(".dir") else None
            if path is not None:
                for file in json.loads(path.read_text(encoding="utf-8")):
                    found.setdefault(str(file["md5"]), reason)

    def _with_ancestors(self, asked: Iterable[Entry]) -> list[Entry]:
        """Entries, and those that made what they read, and so on."""
        makers: dict[str, list[Entry]] = {}
        for entry in self.entries:
            for value in entry.outs.values():
                makers.setdefault(value, []).append(entry)
        waiting, found = list(asked), {}
        while waiting:
            entry = waiting.pop()
            if entry.path not in found:
                found[entry.path] = entry
                waiting += [maker for value in entry.deps for maker in makers.get(value, ())]
        return list(found.values())

    def _entry(self, path: Path) -> Entry:
        changed = path.stat().st_mtime
        try:
            content = parse_yaml(path.read_text(encoding="utf-8"))
            outs = {str(out["path"]): str(out["md5"]) for out in content["outs"]}
            deps = frozenset(str(dep["md5"]) for dep in content.get("deps", ()) if "md5" in dep)
        except (KeyError, TypeError, ValueError, YAMLError):  # cut off as it was written: DVC sees none, too
            return Entry(path, {}, frozenset(), changed)
        own = next((value for name, value in outs.items() if name.startswith("runs/")), "")
        return Entry(path, outs, deps, changed, self._record(own) if own else {})

    def _record(self, name: str) -> Mapping[str, Any]:
        path = self._path(name)
        if path is None or path.stat().st_size > _RECORD_BYTES:
            return {}
        try:
            record = json.loads(path.read_bytes())
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {}


def _changed(path: Path) -> float:
    """When an object came: a file keeps its time of change when DVC moves it here."""
    stat = path.stat()
    return max(stat.st_mtime, stat.st_ctime)
