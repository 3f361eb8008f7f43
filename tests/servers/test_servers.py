"""The servers that other tests stand on: what they hold is there after kill -9, on the same port."""

from __future__ import annotations

import copy
import subprocess

import psutil
import pytest

from tests.servers.bucket_server import BucketServer
from tests.servers.mlflow_server import MlflowServer
from tests.servers.postgres import Postgres, postgres_programs
from tests.servers.prefect_server import PrefectServer

pytestmark = [pytest.mark.slow, pytest.mark.servers]


def sql(postgres: Postgres, command: str) -> str:
    programs = postgres_programs()
    assert programs is not None
    words = [str(programs / "psql"), "--no-psqlrc", "--tuples-only", "--no-align"]
    done = subprocess.run(
        [*words, "-c", command, f"{postgres.url()}/postgres"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_postgres_keeps_what_it_answered_when_it_is_killed(postgres: Postgres) -> None:
    sql(postgres, "CREATE TABLE kept (id int)")
    sql(postgres, "INSERT INTO kept VALUES (7)")
    port, before = postgres.port, postgres.pid
    assert before is not None
    family = [psutil.Process(before), *psutil.Process(before).children()]
    postgres.kill()
    assert not any(process.is_running() for process in family)
    assert not postgres.ready()
    postgres.start()
    assert (postgres.port, sql(postgres, "SELECT id FROM kept")) == (port, "7")


def test_storage_keeps_its_objects_and_knows_its_client(storage: BucketServer) -> None:
    storage.make("kept")
    storage.client().put_object(Bucket="kept", Key="a/b", Body=b"seven")
    storage.kill()
    storage.start()
    assert storage.client().get_object(Bucket="kept", Key="a/b")["Body"].read() == b"seven"
    assert ("GET", "kept/a/b") in storage.requests()
    assert storage.keys("kept") == ["a/b"]
    stranger = copy.copy(storage)
    stranger.secret = "another secret word"
    with pytest.raises(Exception, match=r"SignatureDoesNotMatch|Forbidden|403"):
        stranger.client().get_object(Bucket="kept", Key="a/b")


def test_prefect_and_mlflow_come_back_with_what_they_knew(
    prefect_server: PrefectServer, mlflow_server: MlflowServer, storage: BucketServer, monkeypatch, tmp_path
) -> None:
    import mlflow

    prefect_server.ask("work_pools/", name="kept", type="process")
    for name, value in mlflow_server.client_variables().items():
        monkeypatch.setenv(name, value)
    client = mlflow.MlflowClient(mlflow_server.url)
    run = client.create_run(client.create_experiment("kept"))
    (tmp_path / "note.txt").write_text("seven")
    client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    for server in (prefect_server, mlflow_server):
        server.kill()
        server.start()
    assert [pool["name"] for pool in prefect_server.ask("work_pools/filter")] == ["kept"]
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    assert any(key.endswith("note.txt") for key in storage.keys("mlflow"))
