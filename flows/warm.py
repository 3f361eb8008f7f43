"""Stages that find their imports done: the run's side of flows/warm_process.py."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from flows import credentials
from flows.cores import device_of
from flows.settings import STATE
from flows.supervision import Supervisor
from flows.warm_child import WarmStarts

SWITCH = "PREFLOOP_WARM"
ADDRESS = "PREFLOOP_WARM_ADDRESS"
"""Environment variable: the socket of a warm process that somebody else keeps, such as a watch."""
WORTHWHILE = 2
"""Stages that have to start for it to pay."""

MODULES = (
    "dvc.cli",
    "dvc.repo.reproduce",
    "dvc.commands.repro",
    "ruamel.yaml",
    "pandas",
    "torch",
    "great_expectations.expectations.core",
    "datasketch",
    "torch._dynamo",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen3.modeling_qwen3",
)
"""In the order in which a pipeline wants them. None of our own: they may be edited while a run goes on."""


def worthwhile(root: Path) -> bool:
    """True where stages run on a CPU, and nobody switched warm starts off."""
    return os.environ.get(SWITCH) != "off" and device_of(root) == "cpu"


def find_warm(root: Path) -> WarmStarts | None:
    """Starts through the warm process that somebody keeps for this run; None where nobody does."""
    address = os.environ.get(ADDRESS, "")
    return WarmStarts(address) if address and Path(address).exists() and worthwhile(root) else None


@contextmanager
def warm_starts(supervisor: Supervisor, commands: Sequence[str]) -> Iterator[None]:
    """Starts stages warm during the block, where that pays: several stages of ours, on a CPU.

    A stage on a GPU takes minutes, and a driver that a library happened to wake does not survive a fork.
    PREFLOOP_WARM=off switches it off.

    Args:
        commands: of the stages that may run.
    """
    ours = [command for command in commands if command.startswith("python -m tasks.")]
    if supervisor.warm is not None or len(ours) < WORTHWHILE or not worthwhile(supervisor.root):
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="prefloop-warm-"))  # a socket's path has to be short
    address = str(folder / "socket")
    log = supervisor.root / STATE / "logs" / "warm.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as output:
        child = supervisor.start(
            [sys.executable, "-m", "flows.warm_process", address, *MODULES],
            "warm process",
            output=output.fileno(),
            service=True,
            without=credentials.ALL,  # a fork can read what its first process was started with
        )
    supervisor.warm = WarmStarts(address)
    try:
        yield
    finally:
        supervisor.warm = None
        # It holds nothing but memory, and its forks have sessions of their own.
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        supervisor.finish(child)
        shutil.rmtree(folder, ignore_errors=True)
