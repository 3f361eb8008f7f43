"""Servers for the length of a block, on loopback: PostgreSQL where it is installed, Prefect's, MLflow's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.workspaces import environment
from flows.prefect_database import provide_database
from flows.ui import Server, free_port, mlflow_server, prefect_server, wait_until_up
from tasks.support.process import end_group

GRACE_SECONDS = 20.0


def postgres_programs() -> Path | None:
    """Where initdb and postgres are; Debian keeps them off PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    places += [Path(found).parent] if found else []
    return next((place for place in places if (place / "initdb").exists()), None)


@contextmanager
def postgres(folder: Path, programs: Path) -> Iterator[str]:
    """A fresh cluster; yields its URL without a database's name.

    Args:
        folder: an empty folder, which becomes that of another user where this one is root.
    """
    port = some_port()
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "nobody")
        for parent in [folder, *folder.parents][:4]:
            parent.chmod(parent.stat().st_mode | 0o011)
        as_user = ["runuser", "-u", "nobody", "--"]
    data, quiet = folder / "data", {"check": True, "cwd": folder, "stdout": subprocess.DEVNULL}
    begin = [*as_user, str(programs / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust"]
    subprocess.run(begin, **quiet)  # type: ignore[call-overload]
    control = [*as_user, str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories="
    subprocess.run([*control, "-o", options, "start"], **quiet)  # type: ignore[call-overload]
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "fast", "stop"], **quiet)  # type: ignore[call-overload]


def some_port() -> int:
    """A free port on loopback; processes that ask at the same moment begin to look at different ones."""
    return free_port(20000 + os.getpid() % 10000)


def make_database(url: str, name: str) -> str:
    """An empty database of a cluster; its URL."""
    psql = ["psql", "--no-psqlrc", "--quiet", f"{url}/postgres", "-c", f"CREATE DATABASE {name}"]
    subprocess.run(psql, check=True)
    return f"{url}/{name}"


def analyse(url: str) -> None:
    """Lets PostgreSQL count what a database holds, as it does by itself a minute after much was written."""
    subprocess.run(["psql", "--no-psqlrc", "--quiet", url, "-c", "ANALYZE"], check=True)


def mlflow_reaches_postgres() -> bool:
    """True where the driver is installed that the extra `servers` brings."""
    return importlib.util.find_spec("psycopg2") is not None


@contextmanager
def prefect(folder: Path, database: str) -> Iterator[tuple[Server, int]]:
    """Prefect's server with all its services; yields it and its process group.

    Args:
        database: URL of a PostgreSQL database; empty takes SQLite in `folder`.
    """
    server = prefect_server(some_port())
    if not database:
        provide_database(folder)  # a copy of the one that an installation makes, rather than migrations
    address = database.replace("postgresql://", "postgresql+asyncpg://")
    variables = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        **({"PREFECT_API_DATABASE_CONNECTION_URL": address} if address else {}),
    }
    with running(server, folder, variables) as group:
        yield server, group


@contextmanager
def mlflow(folder: Path, database: str) -> Iterator[tuple[Server, int]]:
    """MLflow's server, artifacts in `folder`; yields it and its process group."""
    uri = database or f"sqlite:///{folder / 'mlflow.db'}"
    server = mlflow_server(uri, some_port())
    command = (*server.command, "--artifacts-destination", str(folder / "artifacts"))
    server = Server(server.name, command, server.address, server.health)
    with running(server, folder, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}) as group:
        yield server, group


@contextmanager
def running(server: Server, folder: Path, variables: Mapping[str, str]) -> Iterator[int]:
    """A server that answers, in a process group of its own; yields the group."""
    log = folder / f"{server.name.lower()}.log"
    with open(log, "wb") as output:
        child = subprocess.Popen(
            server.command,
            cwd=folder,
            env=environment(folder, MLFLOW_DISABLE_TELEMETRY="true", PYTHONPATH="", **variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_up(server, child, log)
        yield child.pid
    finally:
        end_group(child.pid, signal.SIGTERM, GRACE_SECONDS)
        child.wait()


def setup(workspace: Path, variables: Mapping[str, str]) -> None:
    """infra/setup.sh of a workspace; exits where it fails."""
    done = subprocess.run(
        ["bash", "infra/setup.sh"],
        cwd=workspace,
        env=environment(workspace, **variables, PYTHON=sys.executable),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"infra/setup.sh failed:\n{(done.stdout + done.stderr)[-3000:]}")


@contextmanager
def workers(workspaces: list[Path], logs: Path, variables: Mapping[str, str]) -> Iterator[list[int]]:
    """A worker of the pool `workspace` for each workspace, by infra/worker.sh; yields their process groups.

    A worker is called like its workspace's folder. Asked to end, each waits for its run.
    """
    children = []
    try:
        for workspace in workspaces:
            extra = {
                "PREFLOOP_WORKSPACE": str(workspace),
                "PREFECT_HOME": str(logs / f"{workspace.name}-prefect"),
                "PYTHON": sys.executable,
            }
            with open(logs / f"{workspace.name}.log", "wb") as output:
                children.append(
                    subprocess.Popen(
                        ["bash", str(workspace / "infra/worker.sh"), "workspace", workspace.name],
                        cwd=workspace,
                        env=environment(workspace, **{**variables, **extra}),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield [child.pid for child in children]
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(deadline - time.monotonic(), 0.1))
            end_group(child.pid, signal.SIGTERM, GRACE_SECONDS)
            child.wait()
