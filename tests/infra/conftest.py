"""A real Prefect server with all its services, as `prefect server start` starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import free_port

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"


@dataclass(frozen=True)
class Server:
    """A running server and what a process needs to reach it."""

    api: str
    variables: dict[str, str]
    folder: Path

    def run(self, *command: str, code: int = 0, folder: Path = REPOSITORY, **extra: str) -> str:
        """Runs a command to its end; the exit code has to be `code`. Standard output and error together."""
        done = subprocess.run(
            command, cwd=folder, env={**self.variables, **extra}, text=True, timeout=300,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout


def server_variables(folder: Path, port: int) -> dict[str, str]:
    """Environment of a server and its clients that share nothing with anybody else's."""
    ours = ("PREFECT", "PREFLOOP", "MLFLOW")
    cleaned = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {
        **cleaned,
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_CLI_COLORS": "false",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # fmt: skip


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=2).status == 200)
    except OSError:
        return False


def wait_for(url: str, child: subprocess.Popen[bytes], log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not answers(url):
        assert child.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"{url} does not answer\n{log.read_text()}"
        time.sleep(0.2)


def end(child: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Ends a child that leads a session of its own, and what it started."""
    try:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    except ProcessLookupError:
        child.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on an empty database, on which infra/setup.sh ran once."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    made = Server(f"http://127.0.0.1:{port}/api", server_variables(folder, port), folder)
    log = folder / "server.log"
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder, env=made.variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(f"{made.api}/health", child, log)
        (folder / "setup.txt").write_text(made.run("bash", "infra/setup.sh"))
        yield made
    finally:
        end(child)
