"""A Prefect server that the runs of a session's tests share: each spares the seconds of starting its own."""

from __future__ import annotations

import sys
from pathlib import Path

from flows.prefect_database import provide_database
from tests.infra.conftest import answers
from tests.servers.service import Service


class OwnPrefect(Service):
    """The server that `prefloop run` starts for itself where none is named, in a process of its own."""

    name = "own-prefect"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._home = folder / "home"
        self._home.mkdir()
        provide_database(self._home)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "flows.server_process", str(self.port)]

    def variables(self) -> dict[str, str]:
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true"}
        return {**super().variables(), **quiet, "PREFECT_HOME": str(self._home)}

    def ready(self) -> bool:
        return answers(f"{self.api}/health")
