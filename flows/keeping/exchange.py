"""What coordinator and workers left in their exchange: DVC's remote, packs of code, results, checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
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
        self._needed = {**needs.here, **self._remote.needed(needs.references, needs.keys, needs.since)}
        return [*self._remote.items(self._needed, Category.EXCHANGE), *self._others()]

    def remove(self) -> None:
        """Removes what goes; the next call finishes what a kill cut off."""
        self._storage.remove_all(self._files)
        self._remote.remove(self._needed)

    def _others(self) -> list[Item]:
        return [
            *self._aged("code", "code", "a run publishes it anew"),
            *self._aged("results", "result", "its run took it"),
            *self._aged(checkpoints.FOLDER, "checkpoint", "its stage has another key now"),
        ]

    def _aged(self, folder: str, kind: str, why: str) -> list[Item]:
        found = []
        for name, (size, changed) in self._storage.listing(folder).items():
            reason = "too young" if changed >= self._needs.since else ""
            if not reason and kind == "checkpoint":
                reason = self._goes_on(name.split("/")[1])
            found.append(Item(Category.EXCHANGE, kind, name, size, not reason, reason or why))
            if not reason:
                self._files.append(name)
        return found

    def _goes_on(self, key: str) -> str:
        """Why a stage may go on from checkpoints of this key; "" where none would."""
        settled, keys = self._settled_keys
        if key in keys:
            return "its stage would go on from it"
        return "" if settled else "a stage reads what is not up to date: who goes on from it shows later"

    @cached_property
    def _settled_keys(self) -> tuple[bool, set[str]]:
        return settled_keys(self._root, self._needs.repo)


def shared_with() -> str:
    """Why others may use the exchange, too; empty for a folder in the workspace."""
    return f"{FOLDER} names what other workspaces may use, too" if os.environ.get(FOLDER) else ""
