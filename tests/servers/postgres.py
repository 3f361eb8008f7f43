"""PostgreSQL of the system's packages, on loopback, as a user that is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import weakref
from pathlib import Path

import pytest

from benchmarks.queueing.servers import postgres_programs
from tests.servers.service import Service


class Postgres(Service):
    """A PostgreSQL server, made on its first start. Skips the test where the package is absent."""

    name = "postgres"
    ending = signal.SIGINT  # SIGTERM waits until every client is gone

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder, port)
        programs = postgres_programs()
        if programs is None:
            pytest.skip("PostgreSQL is not installed: no initdb in /usr/lib/postgresql/*/bin or on PATH")
        self._programs, self._home = programs, folder
        if self.user():
            # pytest's folders are root's alone, and each pytest that starts sees to it.
            self._home = Path(tempfile.mkdtemp(prefix="prefloop-postgres-"))
            weakref.finalize(self, shutil.rmtree, self._home, ignore_errors=True)
            shutil.chown(self._home, self.user())
        self._data = self._home / "data"

    def user(self) -> str | None:
        if os.geteuid() != 0:
            return None  # PostgreSQL refuses to run as root, and as root alone
        names = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in names else "nobody"

    def place(self) -> Path:
        return self._home

    def command(self) -> list[str]:
        # Without fsync a kill loses nothing, only a power cut does. synchronous_commit stays on: what was
        # answered has to be there after a kill.
        options = ["fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories=", f"port={self.port}"]
        return [self._program("postgres"), "-D", str(self._data), *(f"--{option}" for option in options)]

    def ready(self) -> bool:
        return self._ask("pg_isready", "--quiet").returncode == 0

    def start(self, *, wait: bool = True) -> None:
        if not self._data.exists():
            begin = ["-D", str(self._data), "-U", "postgres", "--auth=trust", "--no-sync"]
            subprocess.run(
                [self._program("initdb"), *begin], user=self.user(), cwd=self._home, check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        super().start(wait=wait)

    def database(self, name: str, driver: str = "") -> str:
        """URL of a database, which is made where it is missing."""
        done = self._ask("createdb", "--username", "postgres", name)
        assert done.returncode == 0 or "already exists" in done.stderr, done.stderr
        return f"{self.url(driver)}/{name}"

    def url(self, driver: str = "") -> str:
        """Of the server, without a database's name."""
        return f"postgresql{f'+{driver}' if driver else ''}://postgres@127.0.0.1:{self.port}"

    def _ask(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self._program(program), "--host", "127.0.0.1", "--port", str(self.port), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")

    def _program(self, name: str) -> str:
        return str(self._programs / name)
