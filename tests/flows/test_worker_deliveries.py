"""What stages on a worker tell MLflow is delivered there, or comes home; nothing of it stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.storage import Storage
from flows.workers.deliveries import deliver, remove, send_home, server_named, take_home
from prefloop.errors import ConfigError
from tasks.support.locks import held
from tasks.support.spool import waiting
from tasks.support.tracking import RunTracker

RUN = "20250101T000000-sft-aaaaaa"


@pytest.fixture
def clones(tmp_path, monkeypatch):
    """A worker's folder with clones of two stages, each of which has told something."""
    monkeypatch.delenv("PREFLOOP_TRACKING", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for stage in ("sft", "dpo"):
        clone = tmp_path / "clones" / stage
        clone.mkdir(parents=True)
        (clone / "params.yaml").write_text("tracking: {experiment: workers}\n")
        monkeypatch.chdir(clone)
        tracker = RunTracker(stage, RUN.replace("sft", stage))
        tracker.start(parent="run-1", params={"seed": 0}, tags={"prefloop.stage": stage})
        model = clone / "models" / stage
        model.mkdir(parents=True)
        (model / "weights").write_text(f"of {stage}")
        tracker.model(model, f"key-{stage}", "prefloop-policy", {"loss": 0.5})
        tracker.end("FINISHED")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "clones"


def spool(clone: Path) -> dict[str, str]:
    """Every file of a spool with its text."""
    folder = clone / ".prefloop/spool"
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_without_a_server_all_goes_home_byte_by_byte(clones, tmp_path):
    before, storage, root = spool(clones / "sft"), Storage(str(tmp_path / "exchange")), tmp_path / "home"
    assert not server_named(clones / "sft")
    deliver(clones / "sft", pytest.fail)
    assert spool(clones / "sft") == before
    sent = send_home(storage, clones / "sft", "flow-1")
    remove(sent)
    assert spool(clones / "sft") == {}
    assert take_home(storage, root, "flow-1") == 1
    assert spool(root) == before
    assert f"{RUN}.files/sft/weights" in before
    assert (storage.sizes("spool"), take_home(storage, root, "flow-1")) == ({}, 0)


def test_a_spool_file_comes_last_so_that_its_models_are_there(clones, tmp_path, monkeypatch):
    storage, root = Storage(str(tmp_path / "exchange")), tmp_path / "home"
    send_home(storage, clones / "sft", "flow-1")
    fetch, seen = storage.fetch, []

    def cut_off(name, target):
        if name.endswith(".jsonl"):
            raise KeyboardInterrupt
        seen.append(name)
        fetch(name, target)

    monkeypatch.setattr(storage, "fetch", cut_off)
    with pytest.raises(KeyboardInterrupt):
        take_home(storage, root, "flow-1")
    assert seen == [f"spool/flow-1/{RUN}.files/sft/weights"]
    assert waiting(root / ".prefloop/spool") == 0
    monkeypatch.undo()
    assert take_home(storage, root, "flow-1") == 1


@pytest.mark.parametrize(
    "name",
    ["../../evil.jsonl", "run.files/../../../x", "run.txt", "run.jsonl/inner", "run.files", ".hidden.jsonl"],
)
def test_a_name_that_no_worker_of_ours_writes_is_refused(name, tmp_path):
    class Listing:
        def sizes(self, folder):
            return {f"{folder}/good.jsonl": 1, f"{folder}/{name}": 1}

        def fetch(self, name, target):
            pytest.fail("nothing is fetched")

    with pytest.raises(ConfigError, match="spool"):
        take_home(Listing(), tmp_path, "flow-1")


def test_with_tracking_off_nothing_is_sent(clones, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFLOOP_TRACKING", "off")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert not server_named(clones / "sft")
    deliver(clones / "sft", pytest.fail)
    assert send_home(Storage(str(tmp_path / "exchange")), clones / "sft", "flow-1") == []


@pytest.mark.slow
def test_a_server_gets_it_and_what_a_killed_attempt_left_beside(clones, tmp_path, monkeypatch, fresh_store):
    """The database stands for a server; the other stage's clone is passed over while an attempt is in it."""
    database = tmp_path / "mlflow.db"
    database.write_bytes(fresh_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert server_named(clones / "sft")
    with held(clones / "dpo/.prefloop/locks/workspace.lock", "the clone"):
        deliver(clones / "sft", pytest.fail)
        assert [waiting(clones / name / ".prefloop/spool") for name in ("sft", "dpo")] == [0, 1]
    deliver(clones / "sft", pytest.fail)
    assert waiting(clones / "dpo/.prefloop/spool") == 0
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([client.get_experiment_by_name("workers").experiment_id])
    assert {(run.info.run_name, run.info.status) for run in runs} == {
        ("sft", "FINISHED"),
        ("dpo", "FINISHED"),
    }


@pytest.mark.slow
def test_a_worker_that_starts_again_delivers_what_was_left(clones, tmp_path, monkeypatch, fresh_store):
    (tmp_path / "worker/0123456789abcdef").parent.mkdir()
    clones.rename(tmp_path / "worker/0123456789abcdef")
    (tmp_path / "mlflow.db").write_bytes(fresh_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("PREFLOOP_WORKER_FOLDER", str(tmp_path / "worker"))
    subprocess.run([sys.executable, "-m", "flows.workers.deliveries"], check=True, cwd=tmp_path)
    assert [waiting(path) for path in (tmp_path / "worker").glob("*/*/.prefloop/spool")] == [0, 0]


@pytest.mark.slow
def test_a_server_that_is_away_is_told_of_and_the_events_go_home(clones, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    said: list[str] = []
    deliver(clones / "sft", said.append)
    assert "what 1 run(s) tell MLflow could not be delivered" in said[0]
    storage = Storage(str(tmp_path / "exchange"))
    assert len(send_home(storage, clones / "sft", "flow-1")) == 3
    (name,) = (name for name in storage.sizes("spool/flow-1") if name.endswith(".jsonl"))
    events = [json.loads(line) for line in storage.read(name).splitlines()]
    assert [event["kind"] for event in events] == ["start", "model", "end"]
