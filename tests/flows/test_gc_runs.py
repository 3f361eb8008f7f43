"""Housekeeping of runs, in a real MLflow store: what a registered model or a branch needs stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

import mlflow
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from flows.keeping.collect import Sweep, at_rest
from flows.keeping.model import Category
from tasks.support.delivery import Delivery
from tasks.support.mlflow_store import local_folder, reached, read_config
from tasks.support.model_delivery import find_logged_model
from tasks.support.spool import spool_folder
from tasks.support.tracking import RunTracker
from tests.flows.kept import Kept, gc, going


@pytest.fixture
def kept(tmp_path, monkeypatch, fresh_store):
    for name in ("DVC_ROOT", "PREFLOOP_STATE", "PREFLOOP_PIPELINE_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    workspace = Kept(tmp_path)
    local_folder().mkdir(parents=True)
    shutil.copy(fresh_store, local_folder() / "mlflow.db")
    return workspace


@pytest.fixture
def store(kept):
    with reached(read_config()) as opened:
        yield opened


def track(
    run: str, *, key: str = "", parent: str = "", registered: str = "prefloop-policy", **tags: str
) -> None:
    """A run in the spool; with a key, of a stage with a checkpoint and a model of its own content."""
    tracker = RunTracker("sft" if key else "pipeline", run, writer=os.getpid())
    tracker.start(parent=parent, params={"seed": 0}, tags=tags)
    tracker.metrics(1, {"loss": 0.5})
    if key:
        folder = Path("models/tracked")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "weights").write_text(f"weights of {key}")
        tracker.checkpoint(1, Path("scratch"), {"loss": 0.5})
        tracker.model(folder, key, registered, {"accuracy": 0.75})
    tracker.end("FINISHED")


def deliver(store, monkeypatch) -> None:
    """As after the end of the processes that wrote the spool."""
    with monkeypatch.context() as patched:
        patched.setattr("tasks.support.process.ProcessId.alive", lambda self: False)
        Delivery(store, spool_folder()).deliver()
    shutil.rmtree("models/tracked", ignore_errors=True)
    assert list(spool_folder().glob("*.jsonl")) == []


def ids(store, view: int = ViewType.ALL) -> dict[str, str]:
    """Our id of every run -> MLflow's, those that are only marked as deleted included."""
    runs = store.client.search_runs([store.experiment], run_view_type=view)
    return {run.data.tags.get("prefloop.run", run.info.run_name): run.info.run_id for run in runs}


def record(run: str, day: int, **stages: str) -> None:
    """A record of a pipeline run of January 2025."""
    folder = Path(".prefloop/pipelines")
    folder.mkdir(parents=True, exist_ok=True)
    when = f"2025-01-{day:02d}T00:00:00+00:00"
    entries = {name: {"run": f"run-{key}", "key": key, "pipeline": run} for name, key in stages.items()}
    (folder / f"{run}.json").write_text(
        json.dumps({"run": run, "start": when, "end": when, "stages": entries})
    )


@pytest.fixture
def history(kept, store, monkeypatch):
    """sft-3-3 is registered and nothing else names it; sft-2-2 is another branch's; sft-4-4 is nobody's."""
    kept.branch("other", 2, 2)
    for value in (3, 4, 6, 1):
        kept.values(value, value)
        kept.run()
    for pipeline, day, key in (("pipe-a", 1, "sft-3-3"), ("pipe-b", 2, "sft-4-4"), ("pipe-c", 3, "sft-6-6")):
        track(pipeline)
        record(pipeline, day, sft=key)
    record("pipe-d", 4)
    track("run-sft-3-3", key="sft-3-3", parent="pipe-a")
    track("run-sft-4-4", key="sft-4-4", parent="pipe-b", registered="")
    track("run-sft-6-6", key="sft-6-6", parent="pipe-c", registered="")
    track("run-sft-2-2", key="sft-2-2", registered="")
    track("z-measurement")
    RunTracker("pipeline", "z-measurement", writer=os.getpid()).model_metrics("sft-3-3", {"eval/gold": 2.0})
    deliver(store, monkeypatch)
    store.client.set_registered_model_alias("prefloop-policy", "champion", "1")
    store.client.create_run(store.experiment, run_name="somebody's own")
    return kept


def test_runs_go_that_no_version_record_or_branch_refers_to(history, store):
    before = ids(store)
    dry = gc(only="runs")["runs"]
    assert going(dry, "run") == {"run-sft-4-4", "pipe-b"}
    assert going(dry, "record") == {"pipe-a.json", "pipe-b.json"}  # the two newest stay
    assert ids(store) == before
    gc(only="runs", yes=True)
    assert set(before) - set(ids(store)) == {"run-sft-4-4", "pipe-b"}  # for good, not only marked
    models = {(m.name, m.source_run_id) for m in store.client.search_logged_models([store.experiment])}
    assert before["run-sft-4-4"] not in {run for _, run in models}
    assert ("sft-step-1", before["run-sft-3-3"]) in models
    assert sorted(path.stem for path in Path(".prefloop/pipelines").iterdir()) == ["pipe-c", "pipe-d"]
    assert going(gc(only="runs")["runs"], "run") == set()
    with pytest.raises(MlflowException):
        store.client.get_run(before["run-sft-4-4"])


def test_a_registered_version_is_still_there_with_its_figures_and_all_it_was_made_of(history, store):
    version = store.client.get_model_version_by_alias("prefloop-policy", "champion")
    gc(yes=True)
    mlflow.set_tracking_uri(store.uri)
    folder = mlflow.artifacts.download_artifacts(
        f"models:/{version.name}/{version.version}", dst_path="loaded"
    )
    assert (Path(folder) / "weights").read_text() == "weights of sft-3-3"
    model = find_logged_model(store, "sft-3-3")
    metrics = {metric.key: metric.value for metric in store.client.get_logged_model(model).metrics}
    assert metrics["eval/gold"] == 2.0
    shutil.rmtree("loaded")
    history.values(3, 3)
    assert history.run() == []  # restored: data, weights and records
    assert history.weights() == "rows of 3\nsft of 3\n"
    history.values(6, 6)
    assert history.run() == []  # of a recorded run that is one of the newest
    history.values(4, 4)
    assert history.run() == ["ingest-4", "sft-4-4"]


def test_a_store_that_is_away_means_that_nothing_a_model_may_need_goes(history, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    before = sorted(history.objects())
    found = gc(yes=True)
    assert "registered models" in found["cache"]["blocked"]
    assert found["runs"]["blocked"]
    assert sorted(history.objects()) == before
    assert len(list(Path(".prefloop/pipelines").iterdir())) == 4


def test_a_model_that_waits_to_be_registered_keeps_what_it_was_made_of(history):
    track("run-late", key="sft-4-4")
    shutil.rmtree("models/tracked")
    assert going(gc()["cache"], "object") == set()
    assert "run-late" not in going(gc()["runs"], "run")


@pytest.mark.parametrize("step", ["set_tag", "delete_logged_model", "delete_run", "_hard_delete_run"])
def test_killed_while_it_deletes_runs_the_next_call_finishes(history, store, step):
    before = ids(store)
    pid = os.fork()
    if not pid:
        try:
            _deleting_until(step)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    gc(only="runs", yes=True)
    assert set(before) - set(ids(store)) == {"run-sft-4-4", "pipe-b"}
    backend_models = mlflow.tracking._tracking_service.utils._get_store(
        store.uri
    )._get_deleted_logged_models()
    assert backend_models == []


def _deleting_until(step: str) -> None:
    """Is killed right after the first call of this name, of the client or of what holds the tables."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking import MlflowClient

    holder = SqlAlchemyStore if step.startswith("_") else MlflowClient
    original = getattr(holder, step)

    def killed(*arguments, **options):
        original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(holder, step, killed)
    with at_rest(Path(".")):
        Sweep(Path("."), (Category.RUNS,), 0.0).remove()
