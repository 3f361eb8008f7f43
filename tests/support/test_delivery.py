"""From spool to MLflow: a real store, real locks, a real server that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

pytest.importorskip("mlflow")

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from prefloop.config.tracking import TrackingConfig
from prefloop.errors import WorkspaceError
from tasks.deliver import deliver_once
from tasks.support import pipeline as pipeline_module
from tasks.support.delivery import Delivery
from tasks.support.mlflow_store import StoreAway, local_folder, reached
from tasks.support.records import find, from_mlflow, local_records
from tasks.support.spool import mlflow_run_id, spool_folder, waiting
from tasks.support.tracking import RunTracker
from tests.servers.mlflow_server import MlflowServer


@pytest.fixture
def store(tracked):
    with reached(TrackingConfig(experiment="test")) as opened:
        yield opened


def write_run(
    name="sft", run="20250101T000000-sft-aaaaaa", key="k1", weights="w", *, parent="", end="FINISHED"
):
    tracker = RunTracker(name, run, writer=os.getpid())
    tracker.start(parent=parent, params={"sft.learning_rate": 0.1}, tags={"prefloop.stage": name})
    for step in range(1, 21):
        tracker.metrics(step, {"loss": 1 / step, "kl": step / 10})
        if step % 10 == 0:
            tracker.checkpoint(step, Path("scratch"), {"loss": 1 / step})
    tracker.dataset("demonstrations", Path("data/x.jsonl"), "d41d8cd98f00b204e9800998ecf8427e", 12)
    tracker.metrics(0, {"accuracy": 0.75}, "final")
    model = Path("models") / name
    model.mkdir(parents=True, exist_ok=True)
    (model / "weights").write_text(weights)
    tracker.model(model, key, "prefloop-policy", {"accuracy": 0.75})
    if end:
        tracker.end(end)
    return tracker


def deliver(store):
    return Delivery(store, spool_folder()).deliver()


def seen(store):
    """Everything in the store that a doubled or lost event would change."""

    def history(run, name):
        return [
            (metric.step, metric.value) for metric in store.client.get_metric_history(run.info.run_id, name)
        ]

    runs = {
        run.data.tags["prefloop.run"]: (
            run.info.status,
            run.data.params,
            {name: history(run, name) for name in run.data.metrics},
            len(run.outputs.model_outputs),
            [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs],
        )
        for run in store.client.search_runs([store.experiment])
    }
    models = sorted(
        (model.name, sorted((m.key, m.step, m.value) for m in model.metrics or []))
        for model in store.client.search_logged_models([store.experiment])
    )
    versions = [v.version for v in store.client.search_model_versions("name = 'prefloop-policy'")]
    return runs, models, versions


def test_delivering_twice_leaves_what_delivering_once_leaves(store):
    run = write_run().run
    shutil.copytree(spool_folder(), "kept")
    deliver(store)
    once = seen(store)
    status, params, metrics, outputs, datasets = once[0][run]
    assert status == "FINISHED"
    assert params == {"sft.learning_rate": "0.1"}
    assert metrics["train/loss"] == [(step, 1 / step) for step in range(1, 21)]
    assert outputs == 3  # two checkpoints and the final model
    assert datasets == [("demonstrations", "d41d8cd98f00b204e9800998ecf8427e")]
    assert [name for name, _ in once[1]] == ["sft", "sft-step-10", "sft-step-20"]
    assert once[1][1][1] == [("train/loss", 10, 0.1)]
    shutil.rmtree(spool_folder())
    shutil.copytree("kept", spool_folder())  # as if the record of the delivery was lost with a kill
    deliver(store)
    assert seen(store) == once


def test_delivery_goes_on_where_it_was_and_what_is_delivered_is_cleared_away(store, monkeypatch):
    tracker = write_run(end="")
    deliver(store)
    tracker.metrics(21, {"loss": 0.5})
    tracker.end("FINISHED")
    assert waiting() == 1
    assert deliver(store) == 2
    assert waiting() == 0
    monkeypatch.setattr("tasks.support.process.ProcessId.alive", lambda self: False)
    deliver(store)
    assert list(spool_folder().glob("*.jsonl")) == []
    assert list(spool_folder().glob("*.files")) == []
    assert mlflow_run_id(tracker.run) is not None


def test_the_run_of_a_killed_process_is_marked(store, monkeypatch):
    tracker = write_run(end="")
    monkeypatch.setattr("tasks.support.process.ProcessId.alive", lambda self: False)
    deliver(store)
    assert seen(store)[0][tracker.run][0] == "KILLED"


def test_a_line_that_a_killed_process_left_torn_waits_for_nobody(store, monkeypatch):
    tracker = write_run(end="")
    path = spool_folder() / f"{tracker.run}.jsonl"
    with open(path, "a") as handle:
        handle.write('{"kind": "metrics", "step": 21')
    deliver(store)
    assert path.exists(), "its writer lives: the rest of the line may come"
    monkeypatch.setattr("tasks.support.process.ProcessId.alive", lambda self: False)
    deliver(store)
    assert waiting() == 0
    assert seen(store)[0][tracker.run][0] == "KILLED"


def test_a_refused_event_does_not_hold_up_the_rest(store):
    tracker = write_run(end="")
    deliver(store)
    tracker.params({"sft.learning_rate": 0.2})  # MLflow never changes a parameter
    tracker.metrics(21, {"loss": 0.25})
    tracker.end("FINISHED")
    deliver(store)
    status, params, metrics, *_ = seen(store)[0][tracker.run]
    assert (status, params["sft.learning_rate"], metrics["train/loss"][-1]) == ("FINISHED", "0.1", (21, 0.25))
    assert "sft.learning_rate" in (spool_folder() / "refused.log").read_text()


def test_a_refused_tag_costs_no_run(store):
    tracker = RunTracker("sft", "run-1", writer=os.getpid())
    tracker.start(parent="", params={"sft.learning_rate": 0.1}, tags={"evaluate@sft": "refused: an @"})
    tracker.metrics(1, {"loss": 0.25})
    tracker.end("FINISHED")
    deliver(store)
    status, params, metrics, *_ = seen(store)[0]["run-1"]
    assert (status, params, metrics["train/loss"]) == ("FINISHED", {"sft.learning_rate": "0.1"}, [(1, 0.25)])
    assert "evaluate@sft" in (spool_folder() / "refused.log").read_text()


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("(psycopg2.InterfaceError) connection already closed", True),
        ("(sqlite3.DatabaseError) database disk image is malformed", True),
        ('(psycopg2.errors.DataError) value "1e999" is out of range for type double precision', False),
    ],
)
def test_only_what_a_database_will_never_take_is_set_aside(store, monkeypatch, words, kept):
    tracker = write_run(end="")
    deliver(store)
    tracker.metrics(21, {"loss": 0.25})
    with monkeypatch.context() as patched:
        error = MlflowException(words, BAD_REQUEST)
        patched.setattr(store.client, "log_batch", mock.Mock(side_effect=error))
        with pytest.raises(MlflowException) if kept else contextlib.nullcontext():
            deliver(store)
    deliver(store)
    last = (21, 0.25) if kept else (20, 0.05)
    assert seen(store)[0][tracker.run][2]["train/loss"][-1] == last
    assert (spool_folder() / "refused.log").exists() is not kept


def test_one_stage_key_has_one_version(store):
    write_run(run="20250101T000000-sft-aaaaaa")
    write_run(run="20250102T000000-sft-bbbbbb")
    write_run(run="20250103T000000-sft-cccccc", key="k2")
    deliver(store)
    runs, _, versions = seen(store)
    assert sorted(map(str, versions)) == ["1", "2"]
    assert len(runs) == 3
    artifacts = local_folder() / "artifacts"
    assert len(list(artifacts.rglob("weights"))) == 2


def test_what_is_delivered_late_are_the_bytes_of_then(store):
    write_run(weights="then")
    Path("models/sft/weights").unlink()
    Path("models/sft/weights").write_text("later")
    deliver(store)
    (copy,) = (local_folder() / "artifacts").rglob("weights")
    assert copy.read_text() == "then"


def test_a_stage_stands_under_its_pipeline_and_a_skipped_one_is_linked(store):
    made = write_run().run
    parent = RunTracker("pipeline", "run-1", writer=os.getpid())
    parent.start(params={"seed": 0}, tags={})
    parent.link("sft", made)
    parent.link("evaluate@sft", made)
    child = write_run(
        "dpo", "20240101T000000-dpo-aaaaaa", "k9", parent="run-1"
    ).run  # sorts before its parent
    deliver(store)
    by_name = {run.data.tags["prefloop.run"]: run for run in store.client.search_runs([store.experiment])}
    assert by_name[child].data.tags["mlflow.parentRunId"] == by_name["run-1"].info.run_id
    for name in ("sft", "evaluate-sft"):
        assert by_name["run-1"].data.tags[f"linked.{name}"] == by_name[made].info.run_id
    assert not (spool_folder() / "refused.log").exists()


def test_a_locked_database_loses_nothing(tracked):
    run = write_run().run
    locker = sqlite3.connect(local_folder() / "mlflow.db", isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreAway, match="cannot be used now") as error:
        deliver_once()
    assert "spool" in error.value.remedy
    assert waiting() == 1
    locker.execute("ROLLBACK")
    locker.close()
    assert deliver_once() > 20
    with reached(TrackingConfig(experiment="test")) as opened:
        assert seen(opened)[0][run][0] == "FINISHED"


def test_only_one_process_delivers(tracked):
    from tasks.support.locks import held

    with (
        held(spool_folder() / "delivery.lock", "the tracking spool"),
        pytest.raises(WorkspaceError, match="pid"),
    ):
        deliver_once()


def test_a_parent_of_another_machine_is_found_in_the_store_though_it_comes_late(store, tracked):
    child = RunTracker("sft", "20250101T000000-sft-aaaaaa", writer=os.getpid())
    child.start(parent="run-elsewhere", params={}, tags={})
    deliver(store)
    assert "mlflow.parentRunId" not in store.client.search_runs([store.experiment])[0].data.tags
    tags = {"prefloop.run": "run-elsewhere"}
    parent = store.client.create_run(store.experiment, tags=tags).info.run_id
    child.end("FINISHED")
    other = RunTracker("dpo", "20250101T000000-dpo-aaaaaa", writer=os.getpid())
    other.start(parent="run-elsewhere", params={}, tags={})
    deliver(store)
    found = store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{parent}'")
    assert {run.info.run_name for run in found} == {"sft", "dpo"}


@pytest.mark.parametrize("named", ["secret", "secret/..", ".."])
def test_a_model_s_files_are_taken_from_beside_the_spool_alone(store, tracked, named):
    """A spool may come from a worker: what it says of another folder is never uploaded."""
    tracker = write_run()
    secret = tracked / "secret"
    secret.mkdir()
    (secret / "weights").write_text("not yours")
    path = spool_folder() / f"{tracker.run}.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if event["kind"] == "model":
            event["files"] = f"{tracked}/{named}"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    deliver(store)
    assert not store.client.search_model_versions("")


def test_a_pipeline_run_has_the_parameters_that_its_stages_read(tracked):
    Path("params.yaml").write_text(
        "seed: 3\nppo: {batch: 8}\nkto: {beta: 0.1}\nsft: {lora: {rank: 4}}\n"
        "policies: {ppo: {ppo: {}, small: {batch: 4}}, kto: {}}\nresources: {place: here}\n"
    )
    assert pipeline_module.describe()["params"] == {
        "seed": "3",
        "ppo.batch": "8",
        "sft.lora.rank": "4",
        "policies.ppo.small.batch": "4",
    }


def test_a_pipeline_run_carries_what_comparing_needs(store, tracked, monkeypatch):
    monkeypatch.setenv("PREFLOOP_TRACKING", "off")
    made = write_run("ppo", "20250101T000000-ppo-aaaaaa", "kp").run
    Path("runs").mkdir()
    Path("runs/ppo.json").write_text(f'{{"stage": "ppo", "run": "{made}", "key": "kp", "pipeline": null}}')
    Path("runs/environment.json").write_text('{"threads": 2}')
    Path("dvc.lock").write_text("stages: {ingest: {outs: [{path: data/raw/a.jsonl, md5: abc}]}}")
    Path("metrics").mkdir()
    Path("metrics/evaluate.json").write_text(
        '{"policies": {"ppo": {"gold": {"mean": 1.5, "ci95": [1.4, 1.6]}, "kl_to_sft": 2.0, "by_kind": {}}}}'
    )
    with pipeline_module.tracked_pipeline() as tracked:
        tracked.link_skipped(["ppo"])
    deliver(store)
    (run,) = store.client.search_runs([store.experiment], "tags.mlflow.runName = 'pipeline'")
    assert run.data.metrics == {"eval/ppo/gold.mean": 1.5, "eval/ppo/kl_to_sft": 2.0}
    assert run.data.params["data.data/raw/a.jsonl"] == "abc"
    assert run.data.params["environment.threads"] == "2"
    assert run.data.params["sft.learning_rate"] == "0.1"
    (model,) = [m for m in store.client.search_logged_models([store.experiment]) if m.name == "ppo"]
    assert {metric.key for metric in model.metrics} >= {"eval/ppo/gold.mean", "final/accuracy"}
    (local,) = local_records()
    remote = from_mlflow(run.info.run_id, run.data.params, run.data.metrics, run.data.tags)
    for part in ("run", "figures", "data"):
        assert remote[part] == local[part]
    assert remote["params"] == local["params"]
    assert local["intervals"] == {"ppo": {"gold": [1.4, 1.6]}}
    assert find("latest", local_records()) == local
    assert find(local["run"], []) == local  # as MLflow has it, with what is not among its parameters
    for artifact in Path(run.info.artifact_uri.removeprefix("file://")).glob("*"):
        artifact.unlink()
    assert find(local["run"], [])["figures"] == local["figures"]


def test_a_page_of_pipeline_runs_shows_what_is_not_a_default(store, tracked, monkeypatch):
    monkeypatch.setenv("PREFLOOP_TRACKING", "off")
    Path("params.yaml").write_text(
        "seed: 0\ntracking: {experiment: test}\nsft: {learning_rate: 1.0e-4, max_length: 96}\n"
        "validate: {expectations: {readable: {severity: warn}, schema: {severity: quarantine}}}\n"
        "policies: {ppo: {}, dpo: {dpo: {}, soft: {beta: 0.3}}}\n"
    )
    with pipeline_module.tracked_pipeline():
        pass
    deliver(store)
    (run,) = store.client.search_runs([store.experiment], "tags.mlflow.runName = 'pipeline'")
    assert run.data.params == {
        "seed": "0",
        "tracking.experiment": "test",
        "sft.max_length": "96",
        "validate.expectations.readable.severity": "warn",
        "policies.dpo.soft.beta": "0.3",
    }


def test_a_pipeline_that_fails_says_so(tracked, monkeypatch):
    monkeypatch.setenv("PREFLOOP_TRACKING", "off")
    with pytest.raises(ValueError, match="stage"), pipeline_module.tracked_pipeline():
        raise ValueError("a stage failed")
    (record,) = local_records()
    assert record["status"] == "FAILED"


@pytest.mark.slow
def test_a_kill_while_the_database_is_made_leaves_none(tracked):
    write_run()
    (local_folder() / "mlflow.db").unlink()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.deliver"], env=environment, stderr=subprocess.DEVNULL
    )
    draft = local_folder() / ".mlflow.db.draft"
    deadline = time.monotonic() + 120
    while not (draft.exists() and draft.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert draft.exists()
    assert not (local_folder() / "mlflow.db").exists()
    assert deliver_once() > 20
    assert not draft.exists()


@pytest.mark.servers
def test_a_server_killed_meanwhile_gets_every_event_once_it_is_back(tracked):
    database = f"sqlite:///{local_folder().absolute() / 'mlflow.db'}"
    server = MlflowServer(tracked / "server", database)
    Path("params.yaml").write_text(f"promote: {{}}\ntracking: {{uri: '{server.url}', experiment: served}}\n")
    tracker = write_run(end="")
    try:
        server.start()
        deliver_once()
        server.kill()
        for step in range(21, 41):
            tracker.metrics(step, {"loss": 1 / step})
        with pytest.raises(StoreAway):
            deliver_once()
        tracker.end("FINISHED")
        server.start()
        deliver_once()
        with reached(TrackingConfig(uri=server.url, experiment="served")) as opened:
            status, _, metrics, _, _ = seen(opened)[0][tracker.run]
        assert status == "FINISHED"
        assert metrics["train/loss"] == [(step, 1 / step) for step in range(1, 41)]
    finally:
        server.kill()
