"""What still needs runs and results: branches, files here, registered models, records of runs that stay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.keeping.cache import Cache
from flows.keeping.references import References, find_references
from flows.keeping.shelves import LocalShelf
from prefloop.errors import DataError
from prefloop.files import read_json
from tasks.support.mlflow_store import local_folder, reached, read_config, tracking_uri
from tasks.support.pipeline import records_folder
from tasks.support.spool import read_events, spool_folder

if TYPE_CHECKING:
    from dvc.repo import Repo

    from tasks.support.retention import Registered

ALWAYS_KEPT = 2
"""Newest records of pipeline runs: `prefloop compare previous latest` reads them."""


class Needs:
    """Asked lazily, each once.

    Args:
        since: what is younger stays (seconds since the epoch).
    """

    def __init__(self, root: Path, repo: Repo, since: float) -> None:
        self.root, self.repo, self.since = root, repo, since

    @cached_property
    def cache(self) -> Cache:
        return Cache(LocalShelf(self.repo))

    @cached_property
    def here(self) -> dict[str, str]:
        """Hash -> what needs that object, as far as the cache here tells.

        Raises:
            StoreAway: the store cannot be asked.
        """
        return self.cache.needed(self.references, self.keys, self.since)

    @cached_property
    def references(self) -> References:
        """What git names in the cache."""
        return find_references(self.root)

    @cached_property
    def registered(self) -> Registered | None:
        """What registered models refer to; None where the workspace's own store was never made.

        Raises:
            StoreAway: the store cannot be asked.
        """
        if not has_store():
            return None
        with reached(read_config()) as store:
            from tasks.support.retention import registered

            return registered(store)

    @cached_property
    def stage_records(self) -> list[tuple[Mapping[str, Any], str]]:
        """Records of stages, with what needs the run of each."""
        here = [_read(path) for path in sorted((self.root / "runs").glob("*.json"))]
        committed = self.cache.records(self.references.records)
        words = [(record, "it made what lies here") for record in here]
        words += [(record, "it made what a branch, tag or stash names") for record in committed]
        return [(record, why) for record, why in words if record.get("run")]

    @cached_property
    def pipelines(self) -> list[tuple[Path, Mapping[str, Any], str]]:
        """Records of pipeline runs, oldest first, with what keeps each; "" for one that nothing does."""
        found = [(path, _read(path)) for path in records_folder().glob("*.json")]
        found.sort(key=lambda pair: str(pair[1].get("start")))
        named = {str(record.get("pipeline")): why for record, why in self.stage_records}
        newest = {path for path, _ in found[-ALWAYS_KEPT:]}
        judged = []
        for path, record in found:
            why = named.get(str(record.get("run")), "")
            if path in newest:
                why = why or "one of the two newest"
            if not why and _ended(path, record) >= self.since:
                why = "too young"
            judged.append((path, record, why))
        return judged

    @cached_property
    def keys(self) -> dict[str, str]:
        """Stage keys whose outputs stay, and what needs them.

        Raises:
            StoreAway: the store cannot be asked.
        """
        found: dict[str, str] = {}
        for key in self.registered.keys if self.registered else ():
            found[key] = "a registered model was made of it"
        for key in self._waiting_models():
            found.setdefault(key, "a model that waits to be registered was made of it")
        for _, record, why in self.pipelines:
            for stage in record.get("stages", {}).values() if why else ():
                found.setdefault(str(stage["key"]), "a recorded run that stays made it")
        return found

    @cached_property
    def runs(self) -> dict[str, str]:
        """Runs that stay, by our id and by MLflow's, and what needs them."""
        found = {path.stem: "it waits to be delivered" for path in spool_folder().glob("*.jsonl")}
        for record, why in self.stage_records:
            for name in ("run", "mlflow_run_id", "pipeline"):
                if record.get(name):
                    found.setdefault(str(record[name]), why)
        for _, record, why in self.pipelines:
            if why:
                found.setdefault(str(record.get("run")), why)
                for stage in record.get("stages", {}).values():
                    found.setdefault(str(stage["run"]), "a recorded run that stays refers to it")
        return found

    def _waiting_models(self) -> set[str]:
        """Stage keys of models on their way to the registry."""
        return {
            str(event["key"])
            for path in spool_folder().glob("*.jsonl")
            for event, _ in read_events(path)
            if event.get("kind") == "model" and event.get("registered")
        }


def has_store() -> bool:
    """False while the workspace's own database, the one that it would use, was never made."""
    uri = tracking_uri(read_config())
    return uri != f"sqlite:///{local_folder() / 'mlflow.db'}" or (local_folder() / "mlflow.db").exists()


def _ended(path: Path, record: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(record["end"])).timestamp()
    except (KeyError, ValueError):
        return path.stat().st_mtime


def _read(path: Path) -> Mapping[str, Any]:
    try:
        record = read_json(path)
    except (DataError, json.JSONDecodeError):
        return {}
    return record if isinstance(record, dict) else {}
