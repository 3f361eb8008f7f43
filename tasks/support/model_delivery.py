"""Models in MLflow: pointers for checkpoints, one copy of each final model, and its version in the registry.

Every function may be called again after a crash: it finds what an earlier call made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tasks.support.mlflow_store import Store

KEY_TAG = "prefloop.key"
EXTERNAL_TAG = "mlflow.model.isExternal"


def log_pointer(store: Store, run: str, name: str, step: int, tags: Mapping[str, str]) -> str:
    """A logged model whose files stay where they are; returns its MLflow id."""
    model = _logged_model(store, run, name, "checkpoint", {**tags, EXTERNAL_TAG: "true"})
    store.client.finalize_logged_model(model.model_id, "READY")
    _link(store, run, model.model_id, step)
    return str(model.model_id)


def log_final(
    store: Store, run: str, stage: str, key: str, registered: str, files: Path
) -> tuple[str, ModelVersion]:
    """The final model of a stage, copied into MLflow's artifact store and registered.

    A stage key that has a version already is linked to it: equal keys make equal models.

    Returns:
        MLflow id of the logged model, and the version.
    """
    known = find_version(store, registered, key)
    if known is not None:
        linked = find_logged_model(store, key)
        if linked:
            _link(store, run, linked, 0)
        return linked or "", known
    tags = {KEY_TAG: key, "prefloop.stage": stage}
    model = _logged_model(store, run, stage, "policy" if stage != "reward" else "reward", tags)
    store.client.log_model_artifacts(model.model_id, str(files))
    store.client.finalize_logged_model(model.model_id, "READY")
    _link(store, run, model.model_id, 0)
    _ensure_registered(store, registered)
    version = store.client.create_model_version(
        registered, model.artifact_location, run_id=run, tags=tags, model_id=model.model_id
    )
    return str(model.model_id), version


def find_version(store: Store, registered: str, key: str) -> ModelVersion | None:
    """The registry's version of a stage key."""
    found = store.client.search_model_versions(f"name = '{registered}' and tags.`{KEY_TAG}` = '{key}'")
    return found[0] if found else None


def find_logged_model(store: Store, key: str) -> str | None:
    """MLflow id of the final model of a stage key."""
    found = store.client.search_logged_models(
        [store.experiment], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1
    )
    return str(found[0].model_id) if found else None


def model_metrics(model_id: str | None, values: Mapping[str, float], time: int, step: int) -> list[Metric]:
    """Metrics of a run, linked to a model where there is one."""
    return [Metric(name, value, time, step, model_id=model_id) for name, value in values.items()]


def _logged_model(store: Store, run: str, name: str, kind: str, tags: dict[str, Any]) -> LoggedModel:
    found = store.client.search_logged_models(
        [store.experiment], filter_string=f"name = '{name}' and source_run_id = '{run}'", max_results=1
    )
    if found:
        return found[0]
    return store.client.create_logged_model(
        store.experiment, name=name, source_run_id=run, tags=tags, model_type=kind
    )


def _link(store: Store, run: str, model_id: str, step: int) -> None:
    """Names a model as an output of a run; MLflow refuses to be told twice."""
    outputs = store.client.get_run(run).outputs
    if outputs is None or model_id not in {model.model_id for model in outputs.model_outputs}:
        store.client.log_outputs(run, [LoggedModelOutput(model_id, step)])


def _ensure_registered(store: Store, name: str) -> None:
    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
