"""Records of pipeline runs: read from the workspace, or from the tracking store for runs made elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefloop.errors import ConfigError, DataError
from prefloop.files import read_json
from tasks.support.mlflow_store import RUN_TAG, Store, StoreAway, reached, read_config
from tasks.support.pipeline import RECORD, records_folder

Record = dict[str, Any]


def local_records(folder: Path | None = None) -> list[Record]:
    """Every pipeline run of this workspace, oldest first; a record that cannot be read is left out."""
    records = []
    for path in (folder or records_folder()).glob("*.json"):
        try:
            records.append(read_json(path))
        except DataError:
            continue
    return sorted(records, key=lambda record: str(record.get("start")))


def find(name: str, records: list[Record]) -> Record:
    """The run called `latest`, `previous`, by its id, or by the beginning of one; else the one that MLflow
    knows.

    Raises:
        ConfigError: no run of that name, or several.
    """
    known = ", ".join(str(record["run"]) for record in records[-5:]) or "none yet"
    places = {"latest": 1, "previous": 2}
    if name in places:
        if len(records) < places[name]:
            raise ConfigError(
                f"there is no {name} run: {len(records)} were made here", "make one: prefloop run"
            )
        return records[-places[name]]
    matching = [record for record in records if str(record["run"]).startswith(name)]
    exact = [record for record in matching if record["run"] == name]
    if len(exact or matching) == 1:
        return (exact or matching)[0]
    if matching:
        raise ConfigError(f"{name} is the beginning of {len(matching)} runs", f"the last ones: {known}")
    found = _from_store(name)
    if found is None:
        raise ConfigError(f"there is no run {name}", f"the last ones: {known}; or: latest, previous")
    return found


def from_mlflow(
    run: str, params: Mapping[str, str], metrics: Mapping[str, float], tags: Mapping[str, str]
) -> Record:
    """A record made of a parent run's parameters, metrics and tags, for one that ended before it had its own:
    parameters at their defaults are not in it."""
    record: Record = {
        "run": tags.get(RUN_TAG, run),
        "git_commit": tags.get("git_commit"),
        "git_dirty": tags.get("git_dirty") == "True" if "git_dirty" in tags else None,
        "params": {},
        "data": {},
        "environment": {},
        "figures": {},
        "intervals": {},
    }
    for name, value in params.items():
        section, _, rest = name.partition(".")
        if section in ("data", "environment"):
            record[section][rest] = value
        else:
            record["params"][name] = value
    for name, number in metrics.items():
        if name.startswith("eval/") and name.count("/") == 2:
            _, policy, figure = name.split("/")
            record["figures"].setdefault(policy, {})[figure] = number
    return record


def _from_store(run: str) -> Record | None:
    from mlflow.exceptions import MlflowException

    try:
        with reached(read_config()) as store:
            found = store.client.search_runs([store.experiment], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
            try:
                made = found[0] if found else store.client.get_run(run)
            except MlflowException:
                return None
            whole = _document(store, made.info.run_id)
            return whole or from_mlflow(run, made.data.params, made.data.metrics, made.data.tags)
    except StoreAway:
        return None


def _document(store: Store, run: str) -> Record | None:
    """The record that a pipeline run has among its artifacts; None without."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder, suppress(MlflowException, OSError, DataError):
        record = read_json(store.client.download_artifacts(run, RECORD, folder))
        return record if isinstance(record, dict) and "run" in record else None
    return None
