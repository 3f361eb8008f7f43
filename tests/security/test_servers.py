"""Servers that a run and `make ui` start: on loopback alone, and for their own pages alone."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.own_pages import OwnPages
from tests.flows.conftest import Project
from tests.flows.conftest import project as project
from tests.flows.conftest import project_template as project_template
from tests.ports import free_port
from tests.sockets import beyond_loopback, family, listening

ORIGINS = ("http://127.0.0.1:4200", "http://localhost:4200")


def answer(kind: str, **headers: str) -> list[dict[str, Any]]:
    """What an application behind OwnPages, which says 200 to everything, sends for such a request."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "reached"})

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def receive() -> Any:
        raise AssertionError("nothing to receive")

    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(OwnPages(application, ORIGINS)({"type": kind, "headers": encoded}, receive, send))
    return sent


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:4200"},
        {"host": "localhost:9999"},  # through a tunnel
        {"host": "localhost"},
        {"host": "127.0.0.1:4200", "origin": "http://localhost:4200"},
        {},
    ],
    ids=str,
)
def test_own_pages_and_programs_are_answered(headers: dict[str, str]) -> None:
    assert answer("http", **headers) == answer("websocket", **headers) == [{"type": "reached"}]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "attacker.example:4200"},
        {"host": "127.0.0.1.attacker.example"},
        {"host": "attacker.example", "origin": "http://attacker.example"},
        {"host": "127.0.0.1:4200", "origin": "https://attacker.example"},
        {"host": "127.0.0.1:4200", "origin": "http://127.0.0.1:8000"},
        {"host": "127.0.0.1:4200", "origin": "null"},
        {"host": ""},
    ],
    ids=str,
)
def test_pages_of_others_and_other_names_are_refused(headers: dict[str, str]) -> None:
    assert answer("http", **headers)[0]["status"] == 403
    assert answer("websocket", **headers) == [{"type": "websocket.close", "code": 1008}]


def test_the_lifespan_passes() -> None:
    assert answer("lifespan") == [{"type": "reached"}]


def test_a_socket_that_others_reach_is_told() -> None:
    """The measure of the tests below."""
    with socket.socket() as everywhere, socket.socket() as here:
        for opened, address in ((everywhere, "0.0.0.0"), (here, "127.0.0.1")):
            opened.bind((address, 0))
            opened.listen()
        found = listening(family(os.getpid()))
        assert ("127.0.0.1", here.getsockname()[1]) in found
        assert beyond_loopback(found) == {("0.0.0.0", everywhere.getsockname()[1])}


@pytest.mark.slow
def test_a_run_listens_on_loopback_alone_and_answers_no_page(project: Project) -> None:
    run = project.start("run", STEPS_SFT="40")
    found: set[tuple[str, int]] = set()
    refused: list[int] = []
    while run.poll() is None:
        found |= listening(family(run.pid))
        if found and not refused and answers(port := next(iter(found))[1]):
            refused.append(ask(port, "/api/health", Host="attacker.example").status)
            refused.append(ask(port, "/api/health", Origin="https://attacker.example").status)
        time.sleep(0.05)
    assert run.returncode == 0, run.communicate()[0]
    assert beyond_loopback(found) == set()
    assert refused == [403, 403], "Prefect's server has to be among them"


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, fresh_store: Path
) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """`make ui` where something ran; the ports of MLflow and Prefect."""
    root = tmp_path_factory.mktemp("ui")
    (root / ".prefloop/mlflow").mkdir(parents=True)
    shutil.copy(fresh_store, root / ".prefloop/mlflow/mlflow.db")
    ours = ("PREFECT", "PREFLOOP", "MLFLOW_T", "DVC")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    mlflow, prefect = free_port(), free_port()
    command = ["flows.ui", "--mlflow-port", str(mlflow), "--prefect-port", str(prefect)]
    child = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        said = []
        for line in child.stdout:
            said.append(line)
            if line.startswith("Ctrl-C"):
                break
        assert f"Prefect  http://127.0.0.1:{prefect}\n" in said, said
        yield child, mlflow, prefect
    finally:
        started = family(child.pid)
        child.send_signal(signal.SIGINT)
        child.wait(60)
        assert not psutil.wait_procs(started, timeout=20)[1], "Ctrl-C ends both"


def ask(port: int, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body=None, headers=headers)
    found = connection.getresponse()
    found.read()
    return found


@pytest.mark.slow
def test_make_ui_listens_on_loopback_alone(pages: tuple[subprocess.Popen[str], int, int]) -> None:
    child, mlflow, prefect = pages
    found = listening(family(child.pid))
    assert {port for _, port in found} >= {mlflow, prefect}
    assert beyond_loopback(found) == set()


@pytest.mark.slow
def test_make_ui_shows_its_pages(pages: tuple[subprocess.Popen[str], int, int]) -> None:
    _, mlflow, prefect = pages
    assert ask(mlflow, "/").status == 200
    assert ask(prefect, "/", Accept="text/html").status in (200, 307)
    own = f"http://localhost:{prefect}"
    found = ask(prefect, "/api/health", Origin=own)
    assert (found.status, found.getheader("access-control-allow-origin")) == (200, own)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_make_ui_allows_nothing_to_pages_of_other_sites(
    pages: tuple[subprocess.Popen[str], int, int], method: str
) -> None:
    _, mlflow, prefect = pages
    paths = {"GET": "/api/health", "POST": "/api/flow_runs/count", "OPTIONS": "/api/flow_runs/count"}
    asks = {"Origin": "https://attacker.example", "Access-Control-Request-Method": "POST"}
    found = ask(prefect, paths[method], method, **asks)
    assert (found.status, found.getheader("access-control-allow-origin")) == (403, None)
    paths = {
        "GET": "/health",
        "POST": "/api/2.0/mlflow/runs/create",
        "OPTIONS": "/api/2.0/mlflow/runs/create",
    }
    found = ask(mlflow, paths[method], method, **asks)
    assert found.getheader("access-control-allow-origin") is None
    assert method != "POST" or found.status == 403


@pytest.mark.slow
def test_make_ui_answers_under_no_other_name(pages: tuple[subprocess.Popen[str], int, int]) -> None:
    _, mlflow, prefect = pages
    for port, path in ((prefect, "/api/health"), (prefect, "/"), (mlflow, "/api/2.0/mlflow/experiments/get")):
        assert ask(port, path, Host=f"attacker.example:{port}").status == 403


def answers(port: int) -> bool:
    try:
        return ask(port, "/api/health").status == 200
    except OSError:
        return False
