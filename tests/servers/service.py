"""A server or worker as a process on loopback, to be killed and started again on the same port and data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

import psutil

from tests.ports import free_port

REPOSITORY = Path(__file__).parents[2]
OURS = ("PREFECT", "PREFLOOP", "MLFLOW", "AWS_", "DVC")

_KEEPER = """
import sys, psutil
known = {}
for line in sys.stdin:
    pid, started = line.split()
    known[int(pid)] = float(started)
for pid, started in known.items():
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - started) < 1:
            for one in [process, *process.children(recursive=True)]:
                one.kill()
    except psutil.Error:
        pass
"""


class Service:
    """One process with all that it starts. Subclasses say what runs and when it is ready.

    Attributes:
        folder: where its data and its log lie; they outlive the process.
        port: where it listens on 127.0.0.1; the same after each start.
    """

    name = "service"
    seconds = 240.0
    """Longest time that a start may take."""
    ending = signal.SIGTERM
    """What asks it to end."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder, self.port = folder, port or free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{self.name}.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._mark = 0

    def command(self) -> list[str]:
        """What is started."""
        raise NotImplementedError

    def ready(self) -> bool:
        """True when it does its work."""
        raise NotImplementedError

    def variables(self) -> dict[str, str]:
        """Its environment: nobody else's settings."""
        cleaned = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        return {**cleaned, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}

    def user(self) -> str | None:
        """Whom it runs as; None for whoever runs the tests."""
        return None

    def place(self) -> Path:
        """Where it is started."""
        return self.folder

    @property
    def pid(self) -> int | None:
        """Of the process; None while it does not run."""
        return self._child.pid if self.running() and self._child else None

    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def said(self) -> str:
        """What it printed since its last start."""
        with open(self.log, encoding="utf-8", errors="replace") as handle:
            handle.seek(self._mark)
            return handle.read()

    def start(self, *, wait: bool = True) -> None:
        """Starts it, on the port and data that it had before, and waits until it is ready."""
        assert not self.running(), f"{self.name} runs"
        self._mark = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as output:
            self._child = subprocess.Popen(
                self.command(), cwd=self.place(), env=self.variables(), user=self.user(),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        _keeper.add(self._child.pid)
        if not wait:
            return
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, seconds: float | None = None) -> None:
        """Waits until it does its work; fails with what it said when it ends before, or takes too long."""
        deadline = time.monotonic() + (seconds or self.seconds)
        while not self.ready():
            assert self.running(), f"{self.name} ended\n{self.said()[-4000:]}"
            assert time.monotonic() < deadline, f"{self.name} is not ready\n{self.said()[-4000:]}"
            time.sleep(0.1)

    def kill(self, *, tree: bool = True) -> None:
        """kill -9, as when its machine is lost; with `tree` false its children are left behind."""
        if self._child is None:
            return
        left = _family(self._child.pid) if tree else []
        with suppress(ProcessLookupError):
            os.kill(self._child.pid, signal.SIGKILL)
        self._child.wait()
        end_all(left, signal.SIGKILL)

    def stop(self, seconds: float = 60.0) -> None:
        """Asks it to end, and ends it and all that it started after a while."""
        if self._child is None:
            return
        left = _family(self._child.pid)
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, self.ending)
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        left += _family(self._child.pid)
        self.kill()
        end_all(left, signal.SIGTERM)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def end_all(processes: Iterable[psutil.Process], number: int, seconds: float = 10.0) -> None:
    """Sends a signal to processes that live, and kills what lives on."""
    alive = [process for process in processes if process.is_running()]
    for process in alive:
        with suppress(psutil.Error):
            process.send_signal(number)
    _, left = psutil.wait_procs(alive, timeout=seconds)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=seconds)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


class _Keeper:
    """Ends what was started when the tests' own process is gone without having done so, kill -9 included."""

    def __init__(self) -> None:
        self._pipe: IO[bytes] | None = None
        self._owner = 0

    def add(self, pid: int) -> None:
        if self._pipe is None or self._owner != os.getpid():
            child = subprocess.Popen(
                [sys.executable, "-c", _KEEPER], stdin=subprocess.PIPE, start_new_session=True
            )
            self._pipe, self._owner = child.stdin, os.getpid()
        with suppress(psutil.Error):
            line = f"{pid} {psutil.Process(pid).create_time()}\n"
            assert self._pipe is not None
            self._pipe.write(line.encode())
            self._pipe.flush()


_keeper = _Keeper()
