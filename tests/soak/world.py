"""Where faults strike: a workspace, its servers, and what can be seen of a run from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.workspaces import ROOT, clone_project, environment
from prefloop.config.read import read_yaml
from tasks.support.locks import holder
from tasks.support.process import identify
from tasks.support.spool import waiting
from tests.servers.prefect_server import PrefectServer
from tests.servers.worker import Worker
from tests.soak.pipelines import Pipeline
from tests.soak.services import Servers

RUN_SECONDS = 420.0
"""A run that takes longer hangs."""
LEAVE_SECONDS = 60.0
"""How long processes may take to end after the one that they work for."""
MIB = 2**20
DISK = 4096 * MIB


@dataclass
class World:
    """A workspace and what surrounds it.

    Attributes:
        root: the workspace.
        pipeline: what runs in it.
        servers: beside it; None where each run starts its own Prefect server and MLflow is a file.
        mounted: the workspace is a file system of its own, which can be made full.
        extra: further environment of its commands.
        workers: that run the stages with models; without any, the workspace does.
        log: where runs write what they print.
    """

    root: Path
    pipeline: Pipeline
    log: Path
    servers: Servers | None = None
    mounted: bool = False
    extra: dict[str, str] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)

    @property
    def homes(self) -> list[Path]:
        """Folders in which stages run: the workspace, and the clones of workers."""
        return [self.root, *(clone for worker in self.workers for clone in worker.clones.glob("*/*"))]

    @property
    def state(self) -> Path:
        return self.root / ".prefloop"

    @property
    def tracking_uri(self) -> str:
        """Where MLflow is, past the proxy."""
        if self.servers is not None:
            return self.servers.tracking_uri
        return f"sqlite:///{self.state}/mlflow/mlflow.db"

    def variables(self, **extra: str) -> dict[str, str]:
        """Environment of a command in the workspace."""
        found = {**environment(self.root), **QUICK, **self.extra}
        found.pop("MLFLOW_TRACKING_URI", None)
        if self.servers is not None:
            found |= self.servers.variables
        return found | extra

    def start(self, drop: str = "", **extra: str) -> subprocess.Popen[bytes]:
        """Starts `prefloop run`.

        Args:
            drop: an environment variable that it does not get.
        """
        words = ["run", *(["--on", self.pipeline.pool] if self.pipeline.pool else [])]
        given = self.variables(**extra)
        given.pop(drop, None)
        with open(self.log, "ab") as log:
            log.write(f"\n=== prefloop {' '.join(words)}\n".encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, "-m", "flows.cli.main", *words], cwd=self.root, env=given, stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def command(self) -> int:
        """`prefloop run`, to its end; returns its exit status."""
        return self.wait(self.start())

    def wait(self, run: subprocess.Popen[bytes]) -> int:
        """Waits for a run's end; returns its exit status.

        Raises:
            TimeoutError: it hangs. It is killed then, with all it started.
        """
        try:
            return run.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill_all()
            run.wait()
            raise TimeoutError(f"a run did not end within {RUN_SECONDS:.0f} s") from None

    def undelivered(self) -> int:
        """Runs whose events wait for MLflow (count)."""
        return sum(waiting(home / ".prefloop/spool") for home in self.homes)

    def set(self, values: Mapping[str, Any]) -> None:
        """Writes parameters, named with dots, into params.yaml."""
        params = read_yaml(self.root / "params.yaml")
        for name, value in values.items():
            *sections, key = name.split(".")
            inner = params
            for section in sections:
                inner = inner[section]
            inner[key] = value
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")

    def forget_run_cache(self) -> None:
        """What DVC would restore instead of running."""
        shutil.rmtree(self.root / ".dvc/cache/runs", ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """Every live process that works in the workspace, or for a run of it."""
        return [process for process in psutil.process_iter() if self._ours(process)]

    def _ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            places = [self.root, *(worker.clones for worker in self.workers)]
            pipe = Path(process.environ().get("PREFLOOP_PARENT_PIPE", "/"))
            folder = Path(process.cwd())
            return any(folder.is_relative_to(place) or pipe.is_relative_to(place) for place in places)
        return False

    def kill_all(self, place: Path | None = None) -> None:
        """kill -9 of every process of the workspace at once, as when the power fails.

        Args:
            place: of those alone that work below it.
        """
        while found := [process for process in self.processes() if place is None or _below(process, place)]:
            for process in found:
                with suppress(psutil.Error):
                    process.suspend()  # lest one sees another die, and says so
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.1)  # psutil would wait for the run, and its exit status be lost

    def left_over(self, seconds: float = LEAVE_SECONDS) -> list[str]:
        """Command lines of processes that still live after a while."""
        deadline = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [_words(process) for process in found]

    def trainer(self, stage: str) -> int | None:
        """Pid of the process that runs a stage, however it was started."""
        for home in self.homes:
            found = holder(home / ".prefloop/locks" / f"{stage}.lock")
            if found is not None and found.process is not None and found.process.alive():
                return found.process.pid
        return None

    def child(self, what: str) -> int | None:
        """Pid of a child that the run recorded: "stage sft", "Prefect server", "warm process"."""
        for record in (record for home in self.homes for record in home.glob(".prefloop/children/*.json")):
            with suppress(OSError, ValueError, KeyError):
                value = json.loads(record.read_text())
                if value["what"] == what and identify(int(value["pid"])) is not None:
                    return int(value["pid"])
        return None

    def process(self, words: str) -> int | None:
        """Pid of a process of the workspace whose command line holds `words`."""
        return next((process.pid for process in self.processes() if words in _words(process)), None)

    def step(self, stage: str) -> int:
        """Steps that a training has logged so far."""
        with suppress(OSError):
            curves = self._scratch(stage, "curve.jsonl")
            return max((path.read_bytes().count(b"\n") for path in curves), default=0)
        return 0

    def checkpoint(self, stage: str) -> int:
        """Step of a training's newest whole checkpoint; 0 without any."""
        found = self._scratch(stage, "checkpoints/checkpoint-*")
        return max((int(path.name.split("-")[1]) for path in found), default=0)

    def _scratch(self, stage: str, pattern: str) -> list[Path]:
        return [path for home in self.homes for path in home.glob(f".prefloop/scratch/{stage}/*/{pattern}")]

    def restore(self) -> None:
        """Servers, networks, workers and the disk are as they were before any fault."""
        if self.servers is not None:
            self.servers.restore()
        for worker in self.workers:
            if not worker.running():
                worker.start()
        if self.mounted:
            self.free_disk()

    def fill_disk(self) -> None:
        """Leaves no room for a single page more."""
        used = shutil.disk_usage(self.root).used
        self._resize(max(used, 4096))

    def free_disk(self) -> None:
        self._resize(DISK)

    def _resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.root)], check=True)


WORKERS = ("worker-1", "worker-2")
QUICK = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "OMP_NUM_THREADS": "1",
}
"""Shorter waits than in life."""


def _below(process: psutil.Process, place: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(place)
    except (psutil.Error, OSError):
        return False


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_until(check: Callable[[], object], seconds: float, poll: float = 0.01) -> bool:
    """Waits until `check` gives something true; False where it does not in time."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll)
    return True


@contextmanager
def mounted(folder: Path) -> Iterator[bool]:
    """Makes a folder a file system of its own in memory, where that is allowed; yields whether it is."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "soak", str(folder)]
    allowed = os.geteuid() == 0 and sys.platform == "linux" and shutil.which("mount") is not None
    done = allowed and subprocess.run(words, capture_output=True, check=False).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def world(folder: Path, pipeline: Pipeline, around: Servers | None) -> Iterator[World]:
    """A workspace in which nothing ran yet.

    Args:
        folder: an empty one, or none yet.
        around: servers that its runs are to use.
    """
    root = folder.absolute() / "workspace"
    with ExitStack() as stack:
        own = stack.enter_context(mounted(root))
        clone_project(root)
        pipeline.prepare(root)
        made = World(root, pipeline, folder / "runs.log", around, own, dict(pipeline.variables))
        stack.callback(made.kill_all)
        if pipeline.pool and around is not None:
            made.workers += [stack.enter_context(_worker(made, around, folder, name)) for name in WORKERS]
        yield made


@contextmanager
def _worker(world: World, around: Servers, folder: Path, name: str) -> Iterator[Worker]:
    server = around.services["prefect"]
    assert isinstance(server, PrefectServer)
    extra = {**QUICK, **world.pipeline.variables, **around.variables}
    worker = Worker(folder / name, server, world.pipeline.pool, name, extra)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def end(pid: int | None, number: int = signal.SIGKILL) -> bool:
    """Signals one process; False where there is none."""
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


__all__ = ["ROOT", "World", "end", "wait_until", "world"]
