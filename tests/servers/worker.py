"""Workers of a Prefect work pool, each as a process with a folder of its own: a machine of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.servers.prefect_server import PrefectServer
from tests.servers.service import Service


class Worker(Service):
    """`prefect worker start --type process`; its clones and DVC's cache lie in `folder/clones`.

    Args:
        name: of the worker, as the server shows it.
        extra: what it finds in its environment besides: PREFLOOP_REMOTE, keys of the storage ...
        limit: flow runs at once (count).
    """

    def __init__(
        self,
        folder: Path,
        server: PrefectServer,
        pool: str,
        name: str,
        extra: dict[str, str] | None = None,
        limit: int = 1,
    ) -> None:
        self.name = name
        super().__init__(folder, 1)  # it listens nowhere
        self.server, self.pool, self.limit = server, pool, limit
        self.extra = extra or {}
        self.clones = folder / "clones"

    def command(self) -> list[str]:
        kind = ["--type", "process", "--limit", str(self.limit)]
        what = ["worker", "start", "--pool", self.pool, "--name", self.name, *kind]
        return [sys.executable, "-m", "prefect", *what]

    def variables(self) -> dict[str, str]:
        return {
            **super().variables(),
            **self.server.client_variables(),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # as infra/worker.sh has it
            "PREFLOOP_WORKER_FOLDER": str(self.clones),
            **self.extra,
        }

    def ready(self) -> bool:
        """True when it asks the server for work."""
        return f"Worker '{self.name}' started!" in self.said()

    def ran(self) -> dict[str, dict[str, str]]:
        """Stage -> record of its last run here (runs/<stage>.json): start, end, key ..."""
        found = {}
        for path in self.clones.glob("*/*/runs/*.json"):
            record = json.loads(path.read_text())
            if path.stem == path.parents[1].name and "stage" in record:
                found[str(record["stage"])] = record
        return found
