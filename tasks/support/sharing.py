"""Sharing a stage's training among processes: the stage is rank 0, starts the others and answers for them.

They end with rank 0, however that ends; if one of them ends before its time, so does rank 0, with what that
one said last.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefloop.errors import ConfigError
from prefloop.training.distribution import RankLost, joined, meeting
from prefloop.training.environment import Environment
from tasks.support.process import lifeline
from tasks.support.ranks import RANK, Place, place

LAST_LINES = 12
POLL_SECONDS = 0.2
LEFT_SECONDS = 30.0
"""After another process failed, how long rank 0 may take to notice it: gloo does at once, NCCL may not."""
ENDING_SECONDS = 5.0


@contextmanager
def shared(environment: Environment, logs: Path) -> Iterator[None]:
    """Shares the trainings of the block among as many processes as the environment says, and as it says.

    Args:
        logs: folder for what the other processes print.

    Raises:
        RankLost: another process ended before its time.
        ConfigError: this process is no `python -m tasks.STAGE`, so that there is nothing to start.
    """
    count = environment.processes
    how: dict[str, Any] = {
        "device": environment.device,
        "precision": environment.precision,
        "sharded": environment.sharding == "full",
    }
    if own := place():
        store = meeting(own.meeting, own.count)
        store.set(_ready(own.rank), "")
        with joined(own.rank, own.count, store, **how):
            yield
    elif count == 1:
        yield
    else:
        command = _command()
        folder = Path(tempfile.mkdtemp(prefix="prefloop-ranks-"))  # on a disk of this machine
        try:
            with lifeline(folder / "lifeline") as variables:
                others = Others(command, count, folder / "meeting", logs, variables)
                with others.answered_for():
                    store = meeting(folder / "meeting", count)
                    others.wait_for(lambda: store.check([_ready(rank) for rank in range(1, count)]))
                    with joined(0, count, store, **how):
                        yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Others:
    """The processes of rank 1 and above, from their start.

    Args:
        command: what each of them runs. meeting: where they look for each other.
        variables: with which they see that this process is gone.
    """

    def __init__(
        self, command: Sequence[str], count: int, meeting: Path, logs: Path, variables: dict[str, str]
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = [logs / f"rank-{rank}.log" for rank in range(1, count)]
        self._children: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        for rank, log in enumerate(self._logs, start=1):
            about = {**os.environ, **variables, RANK: str(Place(rank, count, meeting))}
            with log.open("wb") as output:
                child = subprocess.Popen(
                    command, env=about, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
            self._children.append(child)

    @contextmanager
    def answered_for(self) -> Iterator[None]:
        """The block in which they are needed; whichever way it ends, they end, too."""
        watch = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        watch.start()
        try:
            yield
        except RankLost as error:
            deadline = time.monotonic() + ENDING_SECONDS
            while not (failure := self._failure()) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            raise failure or error from error
        finally:
            self._over.set()
            for child in self._children:
                child.kill()
            for child in self._children:
                child.wait()
            watch.join()

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Waits until `ready()`; raises RankLost when one of them ends before."""
        while not ready():
            if failure := self._failure():
                raise failure
            time.sleep(POLL_SECONDS / 4)

    def _failure(self) -> RankLost | None:
        """What to say of the first that failed; None while all run or ended well."""
        for rank, (child, log) in enumerate(zip(self._children, self._logs, strict=True), start=1):
            code = child.poll()
            if code:
                why = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
                said = "".join(f"\n    {line}" for line in lines)
                return RankLost(
                    f"process {rank} of {len(self._children) + 1} that share this training {why}"
                    + (f"; its last lines:{said}" if said else ""),
                    "run again: it goes on from the last checkpoint, with compute.processes 1 in one process",
                )
        return None

    def _watch(self) -> None:
        """Ends this process if another failed and this one waits for it without end."""
        while not self._over.wait(POLL_SECONDS):
            if failure := self._failure():
                if self._over.wait(LEFT_SECONDS):
                    return
                sys.stderr.write(f"{failure}\n")
                sys.stderr.flush()
                os._exit(failure.exit_code)


def _ready(rank: int) -> str:
    return f"rank {rank} has come"


def _command() -> list[str]:
    """What started this process, to start it again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or not spec.name.startswith("tasks."):
        raise ConfigError(
            "compute.processes is above 1, but this process is no stage that could start others",
            "run the stage as python -m tasks.STAGE, or set compute.processes to 1",
        )
    return [sys.executable, "-m", spec.name, *sys.argv[1:]]
