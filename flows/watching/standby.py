"""A warm process that a watch keeps, so that a run on changed data finds its imports done.

What a run would import first, DVC and torch above all, takes seconds in which nothing begins. The process is
that of flows/warm_process.py; it outlives the runs that use it, and ends with the watch.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import flows
import tasks
from flows.credentials import ALL
from flows.settings import STATE, child_environment
from flows.warm import ADDRESS, MODULES, worthwhile

_OWN = (
    (flows, ("__init__.py", "credentials.py", "warm*.py")),
    (tasks, ("__init__.py", "support/__init__.py", "support/process.py")),
)
"""Of our own code what the process holds, and its forks do not read anew."""


class Standby:
    """At most one such process, where it pays.

    Args:
        variables: by which it notices that the watch is gone.
    """

    def __init__(self, root: Path, variables: Mapping[str, str]) -> None:
        self._root, self._lifeline = root, variables
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._made_of: dict[str, int] = {}

    def keep(self) -> None:
        """Starts it where there is none, and anew where code or packages that it holds were changed."""
        if self._process is not None and (self._process.poll() is not None or self._made_of != _present()):
            self.end()
        if self._process is None and worthwhile(self._root):
            self._start()

    def variables(self) -> dict[str, str]:
        """With which a run finds it; none where what it holds is not what lies here any more."""
        if self._folder is None or self._made_of != _present():
            return {}
        return {ADDRESS: str(self._folder / "socket")}

    def end(self) -> None:
        """Ends it; its forks live on."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)  # it holds nothing but memory
            self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process = self._folder = None

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="prefloop-warm-"))  # a socket's path has to be short
        self._made_of = _present()
        log = self._root / STATE / "logs" / "watch-warm.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        every = child_environment(self._lifeline)
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.warm_process", str(self._folder / "socket"), *MODULES],
                cwd=self._root,
                env={name: value for name, value in every.items() if name not in ALL},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _present() -> dict[str, int]:
    """When packages were last installed, and our own files last written (ns)."""
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    own = [file for package, names in _OWN for name in names for file in Path(*package.__path__).glob(name)]
    found = {}
    for path in (*folders, *map(str, own)):
        with suppress(OSError):
            found[path] = os.stat(path).st_mtime_ns
    return found
