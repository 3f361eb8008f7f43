"""DVC's objects, and entries of the run-cache by which a stage is restored instead of run: what needs each.

`dvc gc` knows what branches, tags and the working tree refer to. It does not know registered models, runs of
the last weeks whose dvc.lock nobody committed, or the run-cache; so what is needed is gathered here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaml import YAMLError

from flows.keeping.model import Category, Item
from flows.keeping.references import References
from flows.keeping.shelves import Shelf, Stored
from prefloop.errors import WorkspaceError
from tasks.support.code import parse_yaml

if TYPE_CHECKING:
    from dvc.repo import Repo

UNNEEDED = "nothing refers to it"
_RECORD_BYTES = 2**20


@dataclass(frozen=True)
class Entry:
    """One entry of the run-cache: a stage as it ran once.

    Attributes:
        outs, deps: path -> hash.
        record: what its runs/<stage>.json says; empty where it has none.
    """

    stored: Stored
    outs: Mapping[str, str] = field(default_factory=dict)
    deps: frozenset[str] = frozenset()
    record: Mapping[str, Any] = field(default_factory=dict)


class Cache:
    """What lies in a cache or remote, looked at once."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    @cached_property
    def objects(self) -> dict[str, Stored]:
        """Hash -> object."""
        return {stored.name: stored for stored in self._shelf.objects()}

    @cached_property
    def entries(self) -> list[Entry]:
        """Those of the run-cache."""
        found = [_entry(stored, content) for stored, content in self._shelf.entries()]
        own = {entry.stored.name: _own_record(entry) for entry in found}
        records = self._records({name for name in own.values() if name})
        return [replace(entry, record=records.get(own[entry.stored.name], {})) for entry in found]

    def needed(self, references: References, keys: Mapping[str, str], since: float) -> dict[str, str]:
        """Hash -> what needs it.

        Args:
            references: what git refers to.
            keys: stage keys that something needs, with what that is: their outputs stay, and those of all
                that they were made of.
            since: what entered the cache later stays (seconds since the epoch).
        """
        found = dict.fromkeys(references.hashes, "a branch, tag, stash or file here names it")
        for reason in dict.fromkeys(keys.values()):
            asked = [entry for entry in self.entries if keys.get(str(entry.record.get("key"))) == reason]
            for entry in self._with_ancestors(asked):
                _add(found, entry.outs.values(), reason)
        for entry in self.entries:
            if entry.stored.changed >= since:
                _add(found, entry.outs.values(), "too young")
        _add(found, (s.name for s in self.objects.values() if s.changed >= since), "too young")
        folders = [name for name in found if name.endswith(".dir") and name in self.objects]
        for folder, content in self._shelf.read(folders).items():
            _add(found, _listed(folder, content), found[folder])
        return found

    def records(self, hashes: Iterable[str]) -> list[Mapping[str, Any]]:
        """What files in runs/ say, by their hashes; those that are not here, or say nothing, are left out."""
        return [record for _, record in sorted(self._records(set(hashes)).items()) if record]

    def items(self, needed: Mapping[str, str], category: Category) -> list[Item]:
        """Every object and entry, and what becomes of it."""
        found = []
        for name, stored in self.objects.items():
            reason = needed.get(name)
            found.append(Item(category, "object", name, stored.size, reason is None, reason or UNNEEDED))
        for entry in self.entries:
            lost = _is_useless(entry, needed)
            reason = "what it restores goes" if lost else "what it restores stays"
            stored = entry.stored
            found.append(Item(category, "run-cache entry", stored.name, stored.size, lost, reason))
        return found

    def remove(self, needed: Collection[str]) -> None:
        """Removes the rest of what was looked at."""
        entries = [entry.stored.name for entry in self.entries if _is_useless(entry, needed)]
        self._shelf.remove(entries, {name for name in self.objects if name not in needed})

    def _records(self, hashes: Collection[str]) -> dict[str, Mapping[str, Any]]:
        small = [name for name in hashes if name in self.objects and self.objects[name].size <= _RECORD_BYTES]
        return {name: _read_record(content) for name, content in self._shelf.read(small).items()}

    def _with_ancestors(self, asked: Iterable[Entry]) -> list[Entry]:
        """Entries, and those that made what they read, and so on."""
        makers: dict[str, list[Entry]] = {}
        for entry in self.entries:
            for value in entry.outs.values():
                makers.setdefault(value, []).append(entry)
        waiting, found = list(asked), {}
        while waiting:
            entry = waiting.pop()
            if entry.stored.name not in found:
                found[entry.stored.name] = entry
                waiting += [maker for value in entry.deps for maker in makers.get(value, ())]
        return list(found.values())


def shared_with(repo: Repo) -> str:
    """Why others may use a workspace's DVC cache, too; empty for its own."""
    folder = Path(repo.cache.local_cache_dir)
    own = (Path(repo.root_dir) / ".dvc").resolve()
    if not folder.resolve().is_relative_to(own):
        return f"DVC's cache lies outside of this workspace, in {folder}"
    return "DVC's cache is set up to be shared" if repo.config["cache"].get("shared") else ""


def _add(found: dict[str, str], names: Iterable[str], reason: str) -> None:
    for name in names:
        found.setdefault(name, reason)


def _listed(folder: str, content: bytes) -> list[str]:
    """Hashes of the files of a folder."""
    try:
        return [str(file["md5"]) for file in json.loads(content)]
    except (ValueError, TypeError, KeyError) as error:
        raise WorkspaceError(
            f"DVC's listing of a folder is damaged: {folder}: what the folder needs is not known",
            "remove that object (its name begins with its folder's two letters); what it was runs again",
        ) from error


def _is_useless(entry: Entry, needed: Collection[str]) -> bool:
    return any(value not in needed for value in entry.outs.values()) or not entry.outs


def _entry(stored: Stored, content: bytes) -> Entry:
    try:
        parsed = parse_yaml(content.decode("utf-8"))
        outs = {str(out["path"]): str(out["md5"]) for out in parsed["outs"]}
        deps = frozenset(str(dep["md5"]) for dep in parsed.get("deps", ()) if "md5" in dep)
    except (KeyError, TypeError, ValueError, YAMLError):  # cut off as it was written: DVC sees none, too
        return Entry(stored)
    return Entry(stored, outs, deps)


def _own_record(entry: Entry) -> str:
    """Hash of the stage's record; "" where it has none."""
    return next((value for name, value in entry.outs.items() if name.startswith("runs/")), "")


def _read_record(content: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
