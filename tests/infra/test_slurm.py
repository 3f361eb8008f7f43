"""The Slurm job when its time is nearly over: its worker ends, and it is queued again.

In the place of Slurm stands what it does with a job: it runs a copy of the script and signals the script's
shell alone. In Prefect's place stands a worker that does nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.infra.conftest import INFRA, REPOSITORY
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SCRIPT = INFRA / "slurm/worker.sbatch"
SCONTROL = '#!/bin/sh\necho "$@" >> "$CALLS"\n'


class Slurm:
    """Runs the job's script as Slurm does."""

    def __init__(self, folder: Path, prefect: str, **variables: str) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        self.calls = folder / "calls"
        self.calls.touch()
        for path, text in ((folder / "bin/scontrol", SCONTROL), (folder / "python", prefect)):
            path.write_text(text)
            path.chmod(0o755)
        self.variables = {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder),
            "USER": "tester",
            "PYTHON": str(folder / "python"), "SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(REPOSITORY),
            "PREFLOOP_REMOTE": "/exchange", "PREFECT_API_URL": "http://127.0.0.1:1/api",
            "CALLS": str(self.calls), **variables,
        }  # fmt: skip

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        copy = shutil.copyfile(SCRIPT, self.folder / "slurm_script")
        return subprocess.Popen(
            ["bash", str(copy)], env={**self.variables, **variables}, cwd=self.folder, start_new_session=True
        )

    def queued_again(self) -> list[str]:
        return self.calls.read_text().splitlines()


IDLE = "#!/bin/sh\ntrap 'exit 0' TERM\ntouch \"$CALLS.began\"\nwhile :; do sleep 0.1; done\n"


@pytest.mark.parametrize(
    ("number", "variables", "calls"),
    [
        (signal.SIGUSR1, {}, ["requeue 17"]),
        (signal.SIGUSR1, {"PREFLOOP_REQUEUE": "no"}, []),
        (signal.SIGTERM, {}, []),
    ],
    ids=["its time is over", "told not to", "cancelled"],
)
def test_a_job_is_queued_again_when_its_time_is_over_alone(tmp_path, number, variables, calls):
    slurm = Slurm(tmp_path, IDLE)
    job = slurm.start(**variables)
    wait_until(lambda: (tmp_path / "calls.began").exists(), 60)
    job.send_signal(number)
    assert job.wait(120) == 0
    assert slurm.queued_again() == calls


def test_a_job_whose_worker_fails_is_not_queued_again(tmp_path):
    slurm = Slurm(tmp_path, "#!/bin/sh\nexit 7\n")
    assert slurm.start().wait(120) == 7
    assert slurm.queued_again() == []
