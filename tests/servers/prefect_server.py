"""Prefect's server with all its services, on a database of one's choice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.infra.conftest import answers, server_variables
from tests.servers.service import Service


class PrefectServer(Service):
    """`prefect server start` on loopback.

    Args:
        database: URL with driver, such as Postgres.database("prefect", "asyncpg") gives.
        settings: further variables of the server, PREFECT_...
    """

    name = "prefect"

    def __init__(
        self,
        folder: Path,
        database: str,
        port: int | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        super().__init__(folder, port)
        self._database, self._settings = database, settings or {}

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def command(self) -> list[str]:
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", "prefect", "server", "start", *place]

    def variables(self) -> dict[str, str]:
        own = {"PREFECT_API_DATABASE_CONNECTION_URL": self._database}
        return {**super().variables(), **server_variables(self.folder, self.port), **own, **self._settings}

    def client_variables(self) -> dict[str, str]:
        """What a client or worker finds in its environment."""
        return {"PREFECT_API_URL": self.api, "PREFECT_WORKER_QUERY_SECONDS": "1"}

    def ready(self) -> bool:
        return answers(f"{self.api}/health")

    def ask(self, path: str, **body: object) -> Any:
        """What the API answers to a POST."""
        import json
        import urllib.request

        request = urllib.request.Request(
            f"{self.api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")
