"""MLflow's server, which alone reaches its database and the artifacts."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.infra.conftest import answers
from tests.servers.bucket_server import BucketServer
from tests.servers.service import Service


class MlflowServer(Service):
    """`mlflow server --serve-artifacts` on loopback.

    Args:
        database: URL such as Postgres.database("mlflow") gives.
        storage: where the artifacts go, to the bucket `mlflow`; without one, to a folder of the server's.
    """

    name = "mlflow"

    def __init__(
        self, folder: Path, database: str, storage: BucketServer | None = None, port: int | None = None
    ) -> None:
        super().__init__(folder, port)
        self._database, self._storage = database, storage

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        artifacts = f"s3://{self._storage.make('mlflow')}/artifacts" if self._storage else str(self.artifacts)
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        stores = ["--backend-store-uri", self._database, "--artifacts-destination", artifacts]
        return [sys.executable, "-m", "mlflow", "server", "--serve-artifacts", *place, *stores]

    @property
    def artifacts(self) -> Path:
        """Where they go without a storage."""
        return self.folder / "artifacts"

    def variables(self) -> dict[str, str]:
        keys = {}
        if self._storage:
            keys = {**self._storage.client_variables(), "MLFLOW_S3_ENDPOINT_URL": self._storage.url}
        return {**super().variables(), **keys, "MLFLOW_DISABLE_TELEMETRY": "true"}

    def client_variables(self) -> dict[str, str]:
        """What a client finds in its environment: no key of the storage."""
        return {"MLFLOW_TRACKING_URI": self.url}

    def ready(self) -> bool:
        return answers(f"{self.url}/health")
