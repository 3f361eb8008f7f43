"""The Slurm job from its first step to its last: signalled before its time is over, queued again, resumed.

In the place of Slurm stands what it does with a job: it runs a copy of the script, signals the script's shell
alone as `#SBATCH --signal` says, and runs it again where it was queued again. In Prefect's place stands a
worker that starts one run of the pipeline, as Prefect's starts flow runs; the run and its trainer are real.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.conftest import INFRA, REPOSITORY
from tests.infra.trainer import STEPS, Trainer
from tests.waiting import wait_until

SCRIPT = INFRA / "slurm/worker.sbatch"
SCONTROL = '#!/bin/sh\necho "$@" >> "$CALLS"\n'
PREFECT = """#!{python}
import os, signal, subprocess, sys
if sys.argv[1:] == ["run"]:
    del os.environ["PREFECT_API_URL"]  # the run has a server of its own
    os.execv("{python}", ["{python}", "-m", "flows.cli.main", "run"])
run = subprocess.Popen([sys.argv[0], "run"], cwd=os.environ["WORKSPACE"], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
run.wait()
"""


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

    @staticmethod
    def time_is_nearly_over(job: subprocess.Popen[bytes]) -> None:
        """As `#SBATCH --signal` says: `B:` means the batch script's shell alone."""
        (found,) = re.findall(r"^#SBATCH --signal=(\S+)$", SCRIPT.read_text(), re.MULTILINE)
        who, name, seconds = re.fullmatch(r"(B:)?([A-Z0-9]+)@(\d+)", found).groups()
        assert who == "B:"
        assert int(seconds) >= 120, "worker.sh alone may take 90 s"
        job.send_signal(getattr(signal, f"SIG{name}"))

    def queued_again(self) -> list[str]:
        return self.calls.read_text().splitlines()


IDLE = '#!/bin/sh\ntouch "$CALLS.began"\nexec sleep 600\n'
"""A worker without a run: a child of it would be waited for as one."""


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


@pytest.mark.servers
@pytest.mark.skipif(sys.platform != "linux", reason="holds a process by what /proc says of its signals")
def test_a_job_whose_time_is_over_goes_on_from_its_checkpoint_to_the_same_bytes(tmp_path):
    workspace = Trainer.make(tmp_path / "workspace")
    expected = workspace.undisturbed(tmp_path / "undisturbed").results()
    variables = {**workspace.environment(), "WORKSPACE": str(workspace.root)}
    for name in ("PATH", "HOME", "USER"):
        variables.pop(name, None)
    (tmp_path / "slurm").mkdir()
    slurm = Slurm(tmp_path / "slurm", PREFECT.format(python=sys.executable), **variables)
    first = slurm.start()
    trainer = workspace.hold()
    slurm.time_is_nearly_over(first)
    workspace.let_go_when_asked(trainer)
    assert first.wait(120) == 0
    assert slurm.queued_again() == ["requeue 17"]
    assert not workspace.processes(), "nothing outlives the job's time"
    assert workspace.checkpoints()
    assert 5 <= workspace.steps() < STEPS

    assert slurm.start(SLURM_RESTART_COUNT="1").wait(240) == 0
    assert workspace.resumed_from() >= 5
    assert workspace.results() == expected
