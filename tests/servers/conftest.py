"""Real servers on loopback, each ended whatever happens. Import the fixtures that a test file needs:

    from tests.servers.conftest import postgres as postgres

Each is shared by the tests of one file. A test that kills one starts it again: the port and the data stay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.servers.bucket_server import BucketServer
from tests.servers.mlflow_server import MlflowServer
from tests.servers.postgres import Postgres
from tests.servers.prefect_server import PrefectServer
from tests.servers.worker import Worker

StartWorker = Callable[..., Worker]
"""start_worker(pool, name, limit=1, **environment) -> a running worker."""


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """PostgreSQL, skipped where its package is absent."""
    with Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    """S3-compatible storage, skipped where rclone is absent."""
    with BucketServer(tmp_path_factory.mktemp("storage")) as server:
        yield server
    if "s3fs" in sys.modules:
        # It keeps a client for a process's life, with the address that was in the environment when it began.
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[PrefectServer]:
    """Prefect's server on PostgreSQL."""
    database = postgres.database("prefect", "asyncpg")
    with PrefectServer(tmp_path_factory.mktemp("prefect-server"), database) as server:
        yield server


@pytest.fixture(scope="module")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, storage: BucketServer
) -> Iterator[MlflowServer]:
    """MLflow's server on PostgreSQL, with artifacts in the storage."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed: extra `servers`")
    pytest.importorskip("boto3", reason="boto3 is not installed: extra `servers`")
    with MlflowServer(
        tmp_path_factory.mktemp("mlflow-server"), postgres.database("mlflow"), storage
    ) as server:
        yield server


@pytest.fixture(scope="module")
def start_worker(
    tmp_path_factory: pytest.TempPathFactory, prefect_server: PrefectServer
) -> Iterator[StartWorker]:
    """Starts workers, as many as are asked for."""
    with ExitStack() as stack:

        def start(pool: str, name: str, limit: int = 1, **environment: str) -> Worker:
            worker = Worker(tmp_path_factory.mktemp(name), prefect_server, pool, name, environment, limit)
            stack.callback(worker.stop)
            worker.start()
            return worker

        yield start
