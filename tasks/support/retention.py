"""What the tracking store still needs: registered models, and runs that something refers to; and how the
rest is deleted."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow.entities import LoggedModel, Run, ViewType
from mlflow.exceptions import MlflowException

from tasks.support.mlflow_store import LINK, PARENT_TAG, RUN_TAG, Store
from tasks.support.model_delivery import KEY_TAG

GC_TAG = "prefloop.gc"
"""Set on a run before it is deleted: a deletion that was cut off is known for ours, and is finished."""
UNFINISHED = ("RUNNING", "SCHEDULED")
PAGE = 1000


@dataclass(frozen=True)
class Registered:
    """What versions of registered models refer to.

    Attributes:
        keys: stage keys that made them.
        runs: MLflow ids of the runs that made or measured them.
        models: MLflow ids of the logged models.
    """

    keys: frozenset[str] = frozenset()
    runs: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Judged:
    """A run and what is to become of it.

    Attributes:
        run: MLflow id.
        name: our id of it, or its name.
        expired: True when nothing refers to it.
        models: MLflow ids of logged models that would go with it.
        size: bytes of its artifacts and theirs, where they lie on this machine.
    """

    run: str
    name: str
    expired: bool
    reason: str
    models: tuple[str, ...] = ()
    size: int = 0


def registered(store: Store) -> Registered:
    """What every version of every registered model refers to."""
    versions = list(_pages(lambda token: store.client.search_model_versions(page_token=token)))
    models = {model for version in versions if (model := _logged_model(version))}
    runs = {version.run_id for version in versions if version.run_id}
    for model in models:
        try:
            logged = store.client.get_logged_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            continue  # somebody deleted it and left its version
        runs |= {metric.run_id for metric in logged.metrics or () if metric.run_id}
        runs |= {logged.source_run_id} if logged.source_run_id else set()
    keys = {version.tags[KEY_TAG] for version in versions if KEY_TAG in version.tags}
    return Registered(frozenset(keys), frozenset(runs), frozenset(models))


@dataclass
class _Runs:
    """Every run of the experiment, and what keeps each."""

    found: dict[str, Run]
    kept: dict[str, str] = field(default_factory=dict)

    def keep(self, run: str | None, reason: str) -> None:
        if run in self.found:
            self.kept.setdefault(str(run), reason)


def judge_runs(store: Store, needed: Mapping[str, str], known: Registered, before: float) -> list[Judged]:
    """Says of every run of the experiment whether something refers to it.

    Args:
        needed: our ids, or MLflow's, of runs that something outside the store refers to, with what that is.
        known: what registered models refer to.
        before: runs that ended later than this stay (seconds since the epoch).
    """
    active = _all_runs(store, ViewType.ACTIVE_ONLY)
    # On a tracking server a run that is marked as deleted is done with: see delete_runs.
    deleted = _all_runs(store, ViewType.DELETED_ONLY) if _deletes_for_good(store) else []
    cut_off = [run for run in deleted if GC_TAG in run.data.tags]
    runs = _Runs({run.info.run_id: run for run in active})
    ours = {run.data.tags[RUN_TAG]: run.info.run_id for run in active if RUN_TAG in run.data.tags}
    for run in active:
        own, mlflow_id = run.data.tags.get(RUN_TAG, ""), run.info.run_id
        if not own:
            runs.keep(mlflow_id, "not prefloop's")
        elif run.info.status in UNFINISHED:
            runs.keep(mlflow_id, "did not end")
        elif mlflow_id in known.runs:
            runs.keep(mlflow_id, "made or measured a registered model")
        elif own in needed or mlflow_id in needed:
            runs.keep(mlflow_id, needed.get(own) or needed[mlflow_id])
        elif (run.info.end_time or run.info.start_time or 0) / 1000 >= before:
            runs.keep(mlflow_id, "too young")
    _follow(runs, ours)
    models = _models_of(store, {*runs.found} - {*runs.kept} | {run.info.run_id for run in cut_off})
    judged = []
    for run in [*active, *cut_off]:
        mlflow_id = run.info.run_id
        reason = runs.kept.get(mlflow_id)
        going = [] if reason else [m for m in models.get(mlflow_id, ()) if m.model_id not in known.models]
        size = sum(_bytes(m.artifact_location) for m in going) + (
            0 if reason else _bytes(run.info.artifact_uri)
        )
        word = "its deletion was cut off" if GC_TAG in run.data.tags else "nothing refers to it"
        judged.append(
            Judged(
                mlflow_id,
                run.data.tags.get(RUN_TAG, run.info.run_name or mlflow_id),
                reason is None,
                reason or word,
                tuple(model.model_id for model in going),
                size,
            )
        )
    return judged


def _follow(runs: _Runs, ours: Mapping[str, str]) -> None:
    """Keeps what kept runs name: their parents, and the runs that made outputs which they only reused."""
    waiting = list(runs.kept)
    while waiting:
        tags = runs.found[waiting.pop()].data.tags
        named = [value for name, value in tags.items() if name == PARENT_TAG or name.startswith(LINK)]
        for name in named:
            run = ours.get(name, name)
            if run in runs.found and run not in runs.kept:
                runs.keep(run, "a run that stays refers to it")
                waiting.append(run)


def delete_runs(store: Store, judged: Iterable[Judged]) -> Iterator[Judged]:
    """Deletes expired runs for good, with their artifacts and models, one after the other; yields each that
    is gone. On a tracking server it only marks them as deleted: what is deleted there for good is decided by
    `mlflow gc` beside its database.

    A kill leaves a run whole, or marked; the next call finds it either way.
    """
    from mlflow.cli import _gc_tracking_resources  # what `mlflow gc` does, without its look at experiments

    backend = _backend(store)
    for_good = _deletes_for_good(store)

    def gc(runs: list[str], models: list[str]) -> None:
        if for_good:
            with contextlib.redirect_stdout(io.StringIO()):
                _gc_tracking_resources(
                    backend, runs, None, models, None, 0, skip_experiments=True, skip_logged_models=False
                )

    active = {model.model_id for model in _logged_models(store)}
    for run in judged:
        if store.client.get_run(run.run).info.lifecycle_stage == "active":
            store.client.set_tag(run.run, GC_TAG, str(int(time.time())))
        for model in active & set(run.models):
            store.client.delete_logged_model(model)
        gc([], list(run.models))
        store.client.delete_run(run.run)
        gc([run.run], [])
        yield run


def _models_of(store: Store, runs: Collection[str]) -> dict[str, list[LoggedModel]]:
    """Logged models by the run that made them; with those whose deletion was cut off."""
    models = _logged_models(store)
    backend = _backend(store)
    if hasattr(backend, "_get_deleted_logged_models"):
        for model in backend._get_deleted_logged_models():
            models.append(backend.get_logged_model(model, allow_deleted=True))
    found: dict[str, list[LoggedModel]] = {}
    for model in models:
        if model.source_run_id and model.source_run_id in runs:
            found.setdefault(model.source_run_id, []).append(model)
    return found


def _logged_models(store: Store) -> list[LoggedModel]:
    return list(_pages(lambda token: store.client.search_logged_models([store.experiment], page_token=token)))


def _backend(store: Store) -> Any:
    """What holds the store's tables; of a tracking server, what talks to it."""
    from mlflow.tracking._tracking_service.utils import _get_store

    return _get_store(store.uri)  # type: ignore[no-untyped-call]


def _deletes_for_good(store: Store) -> bool:
    """True where the store's tables are at hand; False where a tracking server has them."""
    return hasattr(_backend(store), "_hard_delete_run")


def _all_runs(store: Store, view: int) -> list[Run]:
    return list(
        _pages(
            lambda token: store.client.search_runs(
                [store.experiment], run_view_type=view, max_results=PAGE, page_token=token
            )
        )
    )


def _pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _logged_model(version: Any) -> str:
    """MLflow id of a version's logged model; "" for one that was registered from a run's artifacts."""
    if getattr(version, "model_id", None):
        return str(version.model_id)
    last = str(version.source or "").rstrip("/").split("/")
    return next((part for part in reversed(last) if part.startswith("m-")), "")


def _bytes(uri: str) -> int:
    """Bytes below a folder of this machine; 0 for what lies elsewhere."""
    parsed = urlparse(uri)
    if parsed.scheme not in ("", "file"):
        return 0
    folder = Path(unquote(parsed.path))
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
