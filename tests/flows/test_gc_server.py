"""Housekeeping against a tracking server: what it marks there and keeps, and what `mlflow gc` removes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

import mlflow
from mlflow.entities import ViewType

from tasks.support.mlflow_store import reached, read_config
from tasks.support.model_delivery import find_logged_model
from tests.flows.kept import gc, going
from tests.flows.test_gc_runs import history as history
from tests.flows.test_gc_runs import ids
from tests.flows.test_gc_runs import kept as kept
from tests.servers.mlflow_server import MlflowServer

pytestmark = pytest.mark.servers

SERVER = Path(".prefloop/server")


@pytest.fixture
def server(kept, fresh_store, monkeypatch):
    """The workspace's tracking server, in the place of its own database."""
    shutil.rmtree(".prefloop/mlflow")
    SERVER.mkdir()
    shutil.copy(fresh_store, SERVER / "mlflow.db")
    with MlflowServer(SERVER.absolute(), f"sqlite:///{SERVER.absolute()}/mlflow.db") as running:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", running.url)
        yield running


@pytest.fixture
def store(server):
    with reached(read_config()) as opened:
        yield opened


def weights() -> set[str]:
    """What the files of models on the server hold."""
    return {path.read_text() for path in (SERVER / "artifacts").rglob("weights")}


def test_runs_are_marked_on_a_server_and_what_a_registered_model_needs_stays(history, store):
    before = ids(store, ViewType.ACTIVE_ONLY)
    assert weights() == {"weights of sft-3-3"}
    dry = gc(only="runs")["runs"]
    assert going(dry, "run") == {"run-sft-4-4", "pipe-b"}
    assert ids(store, ViewType.ACTIVE_ONLY) == before

    found = gc(yes=True)
    assert set(before) - set(ids(store, ViewType.ACTIVE_ONLY)) == {"run-sft-4-4", "pipe-b"}
    assert ids(store) == before, "a server's runs are marked, and whoever keeps it can bring them back"
    assert weights() == {"weights of sft-3-3"}
    assert not going(found["cache"], "object") & kept_objects(history)
    assert [found["blocked"] for found in found.values() if found["blocked"]] == []
    still_registered(store)

    again = gc()
    assert going(again["runs"], "run") == set(), "what is marked is done with"
    assert [found["bytes"] for found in again.values()] == [0] * len(again)

    back = ids(store)["run-sft-4-4"]
    store.client.restore_run(back)
    assert going(gc(only="runs")["runs"], "run") == {"run-sft-4-4"}, "brought back, and judged anew"
    assert store.client.get_run(back).info.lifecycle_stage == "active"


def kept_objects(history) -> set[str]:
    return {path.name for path in history.objects()}


def still_registered(store) -> None:
    """The champion can be downloaded, and has its figures."""
    version = store.client.get_model_version_by_alias("prefloop-policy", "champion")
    mlflow.set_tracking_uri(store.uri)
    uri = f"models:/{version.name}/{version.version}"
    folder = mlflow.artifacts.download_artifacts(uri, dst_path="loaded", registry_uri=store.uri)
    assert (Path(folder) / "weights").read_text() == "weights of sft-3-3"
    shutil.rmtree("loaded")
    figures = store.client.get_logged_model(find_logged_model(store, "sft-3-3")).metrics
    assert {metric.key: metric.value for metric in figures}["eval/gold"] == 2.0


def test_mlflow_gc_beside_the_database_removes_what_was_marked_and_no_more(history, server, store):
    before = ids(store)
    gc(only="runs", yes=True)
    command = ["mlflow", "gc", "--backend-store-uri", f"sqlite:///{SERVER.absolute()}/mlflow.db"]
    command += ["--tracking-uri", store.uri, "--artifacts-destination", str(server.artifacts)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store.uri}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(before) - set(ids(store)) == {"run-sft-4-4", "pipe-b"}
    assert weights() == {"weights of sft-3-3"}
    still_registered(store)
    assert going(gc(only="runs")["runs"], "run") == set()
