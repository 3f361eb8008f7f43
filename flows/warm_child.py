"""Starting a stage's DVC through the warm process, and the child that comes of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from flows.warm_leader import DVC
from flows.warm_messages import send

ENVIRONMENT = "tasks.environment"
"""The one stage that a run starts without DVC: before there is a plan."""


class WarmChild:
    """A leader and those it leads, as `subprocess.Popen` shows a child.

    Attributes:
        pid: of the leader of the group.
        stdout: what they print.
        returncode: DVC's exit status; -9 where there was no telling it any more. None before `wait`.
    """

    def __init__(self, pid: int, stdout: IO[str], status: IO[str]) -> None:
        self.pid, self.stdout = pid, stdout
        self.returncode: int | None = None
        self._status = status

    def wait(self) -> int:
        """Waits for the end; returns `returncode`."""
        if self.returncode is None:
            with self._status:
                told = self._status.readline()
            self.returncode = int(told) if told else -9
        return self.returncode


class WarmStarts:
    """Starts DVC for stages, and the stage `environment`, through the warm process at `address`."""

    def __init__(self, address: str) -> None:
        self._address = address

    def start(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> WarmChild | None:
        """Starts `python -m` of one of these in a session of its own; None where it has to start cold."""
        if command[1] != "-m" or command[2] not in (DVC, ENVIRONMENT):
            return None
        output, output_end = os.pipe()
        status, status_end = os.pipe()
        told = open(status, encoding="ascii")  # noqa: SIM115
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(self._address)
                asked = {
                    "module": command[2],
                    "arguments": list(command[3:]),
                    "folder": str(folder.absolute()),
                    "environment": dict(environment),
                }
                send(connection, asked, [output_end, status_end])
        except OSError:
            os.close(output)
            told.close()
            return None
        finally:
            os.close(output_end)
            os.close(status_end)
        pid = told.readline()
        if not pid:
            os.close(output)
            told.close()
            return None
        return WarmChild(int(pid), open(output, encoding="utf-8", errors="replace"), told)
