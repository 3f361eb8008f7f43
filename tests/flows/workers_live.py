"""A Prefect server and worker processes on loopback, for the tests of stages on pools."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psutil

from tests.servers.prefect_server import PrefectServer
from tests.servers.worker import Worker
from tests.waiting import wait_until

POOL = "prefloop"
STEPS = "60"
"""Steps of a tenth of a second that stage sft takes on a worker."""


class Live:
    """A server on SQLite and its workers, which tests may kill and start again.

    Args:
        database: Prefect's, ready for use; a copy of it is taken.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        copied = folder / "prefect.db"
        shutil.copy2(database, copied)
        self.folder = folder
        self.server = PrefectServer(folder / "server", f"sqlite+aiosqlite:///{copied}")
        self.server.start()
        self.workers: dict[str, Worker] = {}

    @property
    def shared(self) -> dict[str, str]:
        """What a coordinator needs to know."""
        return {
            **self.server.client_variables(),
            "PREFECT_HOME": str(self.folder / "client"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }

    def start_worker(self, name: str) -> None:
        """A worker with clones of its own; its stages find a GPU, as far as the environment says."""
        worker = Worker(self.folder / name, self.server, POOL, name, {"STEPS_SFT": STEPS, "DEVICE": "cuda"})
        worker.start()
        self.workers[name] = worker

    def trainer(self, worker: str, stage: str) -> psutil.Process | None:
        """The process of a stage on a worker; None while it has none."""
        for process in psutil.process_iter(["cmdline", "cwd", "name"]):
            at_home = str(process.info["cwd"] or "").startswith(str(self.workers[worker].clones))
            if (
                at_home
                and f"tasks/{stage}.py" in (process.info["cmdline"] or [])
                and process.info["name"] != "sh"
            ):
                return process
        return None

    def flow_process(self, worker: str, stage: str) -> psutil.Process:
        """The process of a worker's flow run, while its stage works."""

        def search() -> psutil.Process | None:
            trainer = self.trainer(worker, stage)
            above = trainer.parents() if trainer else []
            # Prefect's worker starts it, it starts DVC, and that the stage.
            pids = [process.pid for process in above]
            at = pids.index(self.workers[worker].pid) if self.workers[worker].pid in pids else 0
            return above[at - 1] if at else None

        return wait_until(search)

    def steps(self, worker: str, stage: str) -> int:
        """How far a stage came on a worker, by its checkpoint."""
        marks = self.workers[worker].clones.glob(f"*/{stage}/.prefloop/scratch/{stage}/step")
        return max((_number(mark) for mark in marks), default=0)

    def ran(self, worker: str) -> dict[str, list[int]]:
        """Stage -> the steps at which a worker began it, each time."""
        found: dict[str, list[int]] = {}
        for log in sorted(self.workers[worker].clones.glob("*/*/.prefloop/ran.log")):
            for line in log.read_text().splitlines():
                stage, step = line.split()
                found.setdefault(stage, []).append(int(step))
        return found

    def revive(self) -> None:
        """Starts workers that ended by themselves, as Prefect's do when their server is away for long."""
        for worker in self.workers.values():
            if not worker.running():
                worker.start()

    def forget(self) -> None:
        """Removes the clones of all workers, none of which has work."""
        for worker in self.workers.values():
            shutil.rmtree(worker.clones, ignore_errors=True)

    def client(self) -> Any:
        """A client of this server; to be used in a `with`."""
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.server.api)

    def attempts(self) -> list[tuple[str, str, bool]]:
        """Name, state and whether it was given up, of every flow run of a stage, the oldest first."""
        from flows.workers.attempts import is_fenced

        with self.client() as client:
            runs = [run for run in client.read_flow_runs(limit=200) if run.deployment_id]
        runs.sort(key=lambda run: run.created)
        return [(run.parameters["stage"], run.state.type.value, is_fenced(run)) for run in runs]

    def close(self) -> None:
        for worker in self.workers.values():
            worker.stop()
        self.server.stop()
        for process in psutil.process_iter(["cwd"]):  # what a killed worker left behind
            if str(process.info["cwd"] or "").startswith(str(self.folder)):
                process.kill()


def _number(mark: Path) -> int:
    try:
        return int(mark.read_text() or 0)
    except FileNotFoundError:  # the stage ended well at this moment
        return 0
