"""What coordinator and workers left in their exchange: DVC's remote, packs of code, results, checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from flows.keeping.cache import Cache
from flows.keeping.model import Category, Item
from flows.keeping.needs import Needs
from flows.keeping.scratch import settled_keys
from flows.keeping.shelves import RemoteShelf
from flows.workers import checkpoints
from flows.workers.exchange import DATA, exchange_of
from flows.workers.trust import FOLDER


class ExchangeSweep:
    """One look at a workspace's exchange, and the removal of what it found.

    Spools are never judged: what a worker could not tell MLflow waits there for the coordinator.
    """

    def __init__(self, root: Path, needs: Needs) -> None:
        self._needs = needs
        self._root = root
        self._storage = exchange_of(root).storage
        self._remote = Cache(RemoteShelf(self._storage, DATA))
        self._needed: Mapping[str, str] = {}
        self._files: list[str] = []

    def look(self) -> list[Item]:
        """Every file of it, and what becomes of each.

        Raises:
            StorageAway: the storage does not answer.
            StoreAway: what registered models need cannot be asked.
        """
        needs = self._needs
        here = needs.cache.needed(needs.references, needs.keys, needs.since)
        self._needed = {**here, **self._remote.needed(needs.references, needs.keys, needs.since)}
        return [*self._remote.items(self._needed, Category.EXCHANGE), *self._others()]

    def remove(self) -> None:
        """Removes what goes; the next call finishes what a kill cut off."""
        self._storage.remove_all(self._files)
        self._remote.remove(self._needed)

    def _others(self) -> list[Item]:
        found = [
            *self._aged("code", "code", lambda _: "", "a run publishes it anew"),
            *self._aged("results", "result", lambda _: "", "its run took it"),
        ]
        settled, keys = settled_keys(self._root, self._needs.repo)

        def kept(name: str) -> str:
            if name.split("/")[1] in keys:
                return "its stage would go on from it"
            return "" if settled else "a stage reads what is not up to date: who goes on from it shows later"

        return [*found, *self._aged(checkpoints.FOLDER, "checkpoint", kept, "its stage has another key now")]

    def _aged(self, folder: str, kind: str, kept: Callable[[str], str], why: str) -> list[Item]:
        found = []
        for name, (size, changed) in self._storage.listing(folder).items():
            reason = kept(name) or ("too young" if changed >= self._needs.since else "")
            found.append(Item(Category.EXCHANGE, kind, name, size, not reason, reason or why))
            if not reason:
                self._files.append(name)
        return found


def shared_with() -> str:
    """Why others may use the exchange, too; empty for a folder in the workspace."""
    return f"{FOLDER} names what other workspaces may use, too" if os.environ.get(FOLDER) else ""
