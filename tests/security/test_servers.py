"""Servers that prefloop starts, looked at from outside: where they listen, and whose pages they answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from flows.settings import child_environment, prefect_settings
from flows.ui import mlflow_server, origins, prefect_server
from tests.ports import free_port


def test_every_command_names_loopback() -> None:
    for server in (mlflow_server("sqlite:///x.db", 5000), prefect_server(4200)):
        words = server.command
        assert words[words.index("--host") + 1] == "127.0.0.1"
        assert server.address.startswith("http://127.0.0.1:")
    assert origins("http://127.0.0.1:4200") == "http://127.0.0.1:4200,http://localhost:4200"


@pytest.mark.slow
def test_a_runs_prefect_server_listens_on_loopback_alone_and_to_no_other_page(tmp_path: Path) -> None:
    port = free_port()
    environment = child_environment({**prefect_settings(tmp_path), "HOME": str(tmp_path)})
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "flows.server_process", str(port)]
    child = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/api/health"
        asked = urllib.request.Request(url, headers={"Origin": "https://attacker.example"})
        answer = None
        deadline = time.monotonic() + 240
        while answer is None and time.monotonic() < deadline and child.poll() is None:
            try:
                answer = urllib.request.urlopen(asked, timeout=2)
            except OSError:
                time.sleep(0.2)
        assert answer is not None
        assert answer.headers.get("Access-Control-Allow-Origin") is None
        processes = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
        sockets = [c for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in sockets} == {"127.0.0.1"}
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
