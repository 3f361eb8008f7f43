"""The servers that runs of a soak share, each on loopback, with proxies where a network can be cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.bucket_server import BucketServer
from tests.servers.mlflow_server import MlflowServer
from tests.servers.postgres import Postgres
from tests.servers.prefect_server import PrefectServer
from tests.servers.service import Service
from tests.soak.proxy import Proxy


class Behind(BucketServer):
    """Storage as clients see it through a proxy; it is neither started nor ended here."""

    def __init__(self, storage: BucketServer, proxy: Proxy) -> None:
        super().__init__(storage.folder, proxy.port)


@dataclass(frozen=True)
class Servers:
    """What a soak has beside its workspaces.

    Attributes:
        services: "database", "storage", "prefect", "mlflow".
        networks: a proxy before "mlflow", and one before "storage".
        variables: what runs and workers find in their environment; they reach MLflow and the storage through
            proxies.
        tracking_uri: the MLflow server itself.
        artifacts: folder in which the storage keeps the artifacts.
    """

    services: Mapping[str, Service]
    networks: Mapping[str, Proxy]
    variables: Mapping[str, str]
    tracking_uri: str
    artifacts: Path

    def restore(self) -> None:
        """Everything runs, every network is whole."""
        for proxy in self.networks.values():
            proxy.set()
        for service in self.services.values():
            if not service.running():
                service.start(wait=False)
            service.wait_ready()


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Runs all of them for the length of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        database = Postgres(folder / "database")
        storage = BucketServer(folder / "storage")
        for first in (database, storage):
            stack.enter_context(first)
        to_storage = stack.enter_context(Proxy(storage.port))
        prefect = PrefectServer(folder / "prefect", database.database("prefect", "asyncpg"))
        cut_off = Behind(storage, to_storage)
        mlflow = MlflowServer(folder / "mlflow", database.database("mlflow"), cut_off)
        for server in (prefect, mlflow):
            stack.callback(server.stop)
            server.start(wait=False)
        for server in (prefect, mlflow):
            server.wait_ready()
        to_mlflow = stack.enter_context(Proxy(mlflow.port))
        yield Servers(
            {"database": database, "storage": storage, "prefect": prefect, "mlflow": mlflow},
            {"mlflow": to_mlflow, "storage": to_storage},
            {
                **prefect.client_variables(),
                **cut_off.client_variables(),
                "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{to_mlflow.port}",
                "PREFLOOP_REMOTE": f"s3://{storage.make('exchange')}/soak",
            },
            mlflow.url,
            storage.data / "mlflow" / "artifacts",
        )
