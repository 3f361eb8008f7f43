"""The tracking store: where it is, and a client to it. Importing this module is cheap; `connect` imports
mlflow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefloop.config.read import read_section
from prefloop.config.tracking import TrackingConfig
from prefloop.errors import WorkspaceError
from tasks.support.redact import redact
from tasks.support.workspace import state_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG, PARENT_TAG = "prefloop.run", "mlflow.parentRunId"
LINK = "linked."
"""Begins the tag of a pipeline run that names the run of a stage which did not run in it."""
_SQLITE = "sqlite:///"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""A server that is away is asked again at the next delivery, not within one call."""


@dataclass(frozen=True)
class Store:
    """A connected tracking store.

    Attributes:
        client: talks to tracking and registry.
        uri: where they are.
        experiment: MLflow id of the experiment.
    """

    client: MlflowClient
    uri: str
    experiment: str


class StoreAway(WorkspaceError):
    """The tracking store cannot be reached now."""


def read_config() -> TrackingConfig:
    """Section `tracking`; its defaults in a folder without params.yaml."""
    path = Path("params.yaml")
    return read_section("tracking", TrackingConfig, path) if path.exists() else TrackingConfig()


def local_folder() -> Path:
    """Where the workspace's own database and artifacts lie."""
    return state_folder() / "mlflow"


def tracking_uri(config: TrackingConfig) -> str:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else the workspace's own database."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{local_folder() / 'mlflow.db'}"


def connect(config: TrackingConfig) -> Store:
    """Opens the store, and makes database and experiment on first use.

    Hold the delivery lock for that first use: two processes that make one database break each other.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    uri = tracking_uri(config)
    location = None
    if uri.startswith(_SQLITE):
        _make_database(Path(uri.removeprefix(_SQLITE)))
        location = (local_folder() / "artifacts").as_uri()
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.get_experiment_by_name(config.experiment)
    if found is not None:
        return Store(client, uri, found.experiment_id)
    return Store(client, uri, client.create_experiment(config.experiment, artifact_location=location))


def _make_database(path: Path) -> None:
    """Makes MLflow's tables where there is no database yet, whole or not at all: what a kill leaves of them
    would be refused for ever ("table ... already exists")."""
    if path.exists():
        return
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    for left in path.parent.glob(f"{draft.name}*"):
        left.unlink()
    MlflowClient(tracking_uri=f"{_SQLITE}{draft}").get_experiment_by_name("Default")
    os.replace(draft, path)


@contextmanager
def reached(config: TrackingConfig) -> Iterator[Store]:
    """A connected store for the length of the block.

    Raises:
        StoreAway: server down, database locked, disk full: here or while the block talks to the store.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield connect(config)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreAway(
            f"the tracking store {redact('uri', tracking_uri(config))} cannot be used now: "
            f"{redact('error', first)}",
            "runs go on without it: what they log waits in .prefloop/spool, and the next run delivers it",
        ) from error
