"""A Prefect server and worker processes on loopback, for the tests of stages on pools."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.flows.conftest import Project, wait_until
from tests.infra.conftest import answers, end
from tests.ports import free_port

POOL = "prefloop"
STEPS = "60"
"""Steps of a tenth of a second that stage sft takes on a worker."""


@dataclass
class Live:
    """A server and its workers, which tests may kill and start again."""

    folder: Path
    variables: dict[str, str]
    port: int = field(default_factory=free_port)
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def shared(self) -> dict[str, str]:
        """What a coordinator needs to know."""
        return {
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }

    def start_server(self) -> None:
        self._start("server", "flows.server_process", str(self.port))
        wait_until(lambda: answers(f"{self.api}/health"), 240)

    def start_worker(self, name: str) -> None:
        """A worker with clones of its own."""
        self._start(
            name, "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name,
            PREFECT_WORKER_QUERY_SECONDS="1", PREFLOOP_WORKER_FOLDER=str(self.clones(name)),
            STEPS_SFT=STEPS, DEVICE="cuda",
        )  # fmt: skip

    def clones(self, worker: str) -> Path:
        return self.folder / f"clones-{worker}"

    def kill(self, name: str) -> None:
        """kill -9 of one of these processes alone."""
        self.children[name].kill()
        self.children.pop(name).wait()

    def flow_process(self, worker: str, stage: str) -> psutil.Process:
        """The process of a worker's flow run of a stage, while that trains."""

        def search() -> psutil.Process | None:
            trainer = self.trainer(worker, stage)
            if trainer is None:
                return None
            for process in psutil.Process(self.children[worker].pid).children(recursive=True):
                if trainer in process.children(recursive=True) and "prefect" in " ".join(process.cmdline()):
                    return process
            return None

        return wait_until(search)

    def trainer(self, worker: str, stage: str) -> psutil.Process | None:
        """The process of a stage on a worker; None while it has none."""
        for process in psutil.process_iter(["cmdline", "cwd"]):
            words = process.info["cmdline"] or []
            at_home = str(process.info["cwd"] or "").startswith(str(self.clones(worker)))
            if at_home and f"tasks/{stage}.py" in words and words[0].startswith(sys.executable[:-2]):
                return process
        return None

    def steps(self, worker: str, stage: str) -> int:
        """How far a stage came on a worker, by its checkpoint."""
        marks = list(self.clones(worker).glob(f"*/{stage}/.prefloop/scratch/{stage}/step"))
        return max((int(mark.read_text() or 0) for mark in marks), default=0)

    def ran(self, worker: str) -> dict[str, list[int]]:
        """Stage -> the steps at which a worker began it, each time; and forgets them."""
        found: dict[str, list[int]] = {}
        for log in sorted(self.clones(worker).glob("*/*/.prefloop/ran.log")):
            for line in log.read_text().splitlines():
                stage, step = line.split()
                found.setdefault(stage, []).append(int(step))
            log.unlink()
        return found

    def forget(self) -> None:
        """Removes the clones of all workers, none of which has work."""
        for folder in self.folder.glob("clones-*"):
            shutil.rmtree(folder)

    def client(self) -> Any:
        """A client of this server; to be used in a `with`."""
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api)

    def attempts(self) -> list[tuple[str, str, bool]]:
        """Name, state and whether it was given up, of every flow run of a stage, the oldest first."""
        from flows.workers.attempts import is_fenced

        with self.client() as client:
            runs = client.read_flow_runs(limit=200)
        runs = sorted((run for run in runs if run.deployment_id), key=lambda run: run.created)
        return [(run.name, run.state.type.value, is_fenced(run)) for run in runs]

    def close(self) -> None:
        for name in reversed(list(self.children)):
            end(self.children.pop(name))
        for process in psutil.process_iter(["cwd"]):
            if str(process.info["cwd"] or "").startswith(str(self.folder)):
                process.kill()

    def _start(self, name: str, *command: str, **extra: str) -> None:
        with open(self.folder / f"{name}.log", "a") as log:
            self.children[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self.folder,
                env={**self.variables, **self.shared, **extra},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def live(project_template: Path, folder: Path) -> Live:
    """A server on a database that is ready, and one worker, `first`."""
    shutil.copytree(project_template / ".prefloop/prefect", folder / "prefect")
    made = Live(folder, Project(folder).environment())
    try:
        made.start_server()
        made.start_worker("first")
    except BaseException:
        made.close()
        raise
    return made


def kill_9(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
