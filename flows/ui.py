"""`python -m flows.ui`: MLflow and Prefect, on loopback, on what ran in this workspace. Ctrl-C ends both."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from flows import settings
from prefloop.errors import PrefloopError, WorkspaceError
from tasks.support.mlflow_store import local_folder, read_config, tracking_uri
from tasks.support.process import end_group
from tasks.support.spool import waiting

START_SECONDS = 300.0
GRACE_SECONDS = 10.0
PORTS_TRIED = 50


@dataclass(frozen=True)
class Server:
    """One server to show.

    Attributes:
        name: what people call it.
        command: how to start it.
        address: where its pages are.
        health: path that answers when it is up.
    """

    name: str
    command: tuple[str, ...]
    address: str
    health: str


def free_port(preferred: int) -> int:
    """`preferred`, or the next port on loopback that nobody holds.

    Raises:
        WorkspaceError: fifty ports in a row are taken.
    """
    for port in range(preferred, preferred + PORTS_TRIED):
        with socket.socket() as probe:
            # A listener on any address counts: a browser would reach that one.
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise WorkspaceError(
        f"ports {preferred} to {preferred + PORTS_TRIED - 1} are taken",
        "choose another: --mlflow-port, --prefect-port",
    )


def mlflow_server(uri: str, port: int) -> Server:
    """MLflow's own server on a database."""
    command = ("mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port))
    return Server(
        "MLflow", (sys.executable, "-m", *command, "--workers", "1"), f"http://127.0.0.1:{port}", "/health"
    )


def prefect_server(port: int) -> Server:
    """Prefect's server on the workspace's profile, on loopback and for its own pages alone."""
    command = ("flows.server_process", str(port), "--pages")
    return Server("Prefect", (sys.executable, "-m", *command), f"http://127.0.0.1:{port}", "/api/health")


@contextmanager
def serving(server: Server, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server for the length of the block, in a process group that ends with it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as output:
        child = subprocess.Popen(
            server.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=settings.child_environment(
                {
                    "PREFECT_UI_API_URL": f"{server.address}/api",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # scoring jobs: processes of no use here
                }
            ),
            start_new_session=True,
        )
    try:
        yield child
    finally:
        end_group(child.pid, signal.SIGTERM, GRACE_SECONDS)
        child.wait()


def wait_until_up(server: Server, child: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when a server answers.

    Raises:
        WorkspaceError: it ended, or did not answer in five minutes.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise WorkspaceError(f"{server.name} ended with exit code {child.returncode}", f"read {log}")
        try:
            with urllib.request.urlopen(server.address + server.health, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise WorkspaceError(f"{server.name} does not answer at {server.address}", f"read {log}")


def show(mlflow_port: int, prefect_port: int) -> None:
    """Serves both until a signal comes.

    Raises:
        WorkspaceError: nothing ran here yet, or a server does not start.
    """
    settings.apply(Path("."))
    uri = tracking_uri(read_config())
    remote = not uri.startswith("sqlite:")
    if not remote and not (local_folder() / "mlflow.db").exists() and not waiting():
        raise WorkspaceError("nothing ran in this workspace yet", "run the pipeline first: make run")
    if waiting():
        print("delivering what waits for MLflow ...", flush=True)
        subprocess.run([sys.executable, "-m", "tasks.deliver"], stdout=subprocess.DEVNULL, check=False)
    servers = [] if remote else [mlflow_server(uri, free_port(mlflow_port))]
    named = os.environ.get("PREFECT_API_URL")
    servers += [] if named else [prefect_server(free_port(prefect_port))]
    with ExitStack() as stack:
        logs = {server: settings.STATE / "logs" / f"ui-{server.name.lower()}.log" for server in servers}
        children = {server: stack.enter_context(serving(server, log)) for server, log in logs.items()}
        for server, child in children.items():
            print(f"{server.name} is starting ...", flush=True)
            wait_until_up(server, child, logs[server])
            print(f"{server.name:<8} {server.address}", flush=True)
        if remote:
            print(f"MLflow   runs elsewhere: {uri}", flush=True)
        if named:
            print(f"Prefect  runs elsewhere: {named.removesuffix('/api')}", flush=True)
        print("Ctrl-C ends both", flush=True)
        signal.pause()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description=__doc__)
    parser.add_argument("--mlflow-port", type=int, default=5000, help="first port to try (5000)")
    parser.add_argument("--prefect-port", type=int, default=4200, help="first port to try (4200)")
    options = parser.parse_args(arguments)

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0 if number == signal.SIGINT else 128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        show(options.mlflow_port, options.prefect_port)
    except PrefloopError as error:
        print(f"ui: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
