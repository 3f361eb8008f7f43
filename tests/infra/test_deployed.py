"""Deployments on a real server, taken by a real worker of a tiny workspace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.flows.conftest import Project, wait_until
from tests.flows.conftest import project as project
from tests.flows.conftest import project_template as project_template
from tests.infra.conftest import INFRA, REPOSITORY, Server, end
from tests.infra.test_setup import ask

pytestmark = pytest.mark.slow


@pytest.fixture
def worker(server: Server, project: Project, tmp_path) -> Iterator[Project]:
    """A workspace whose worker is running; stage sft takes three seconds and writes down each step."""
    command = ["prefect", "worker", "start", "--pool", "workspace", "--type", "process", "--limit", "1"]
    variables = {"PREFLOOP_WORKSPACE": str(project.root), "PREFLOOP_TRACKING": "off", "STEPS_SFT": "30"}
    with open(tmp_path / "worker.log", "wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=tmp_path, env={**server.variables, **variables},
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    yield project
    end(child)
    print((tmp_path / "worker.log").read_text()[-4000:])


def start(server: Server, deployment: str, **parameters: object) -> str:
    """Id of a flow run of a deployment, as `prefect deployment run` makes it."""
    found = ask(server, "deployments/filter")
    (wanted,) = [item for item in found if item["name"] == deployment]
    return str(ask(server, f"deployments/{wanted['id']}/create_flow_run", parameters=parameters)["id"])


def state(server: Server, run: str) -> dict[str, Any]:
    return dict(ask(server, "flow_runs/filter", flow_runs={"id": {"any_": [run]}})[0]["state"])


def ended(server: Server, run: str) -> dict[str, Any]:
    final = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
    return wait_until(lambda: (found := state(server, run))["type"] in final and found, 480)


def test_deployments_run_in_the_workspace_one_after_the_other_and_skip_what_is_unchanged(server, worker):
    first, second = start(server, "pipeline"), start(server, "data-changed")
    stages = len(worker.plan())
    assert ended(server, first)["message"] == f"{stages} of {stages} stages had work to do"
    found = ended(server, second)
    assert (found["name"], found["message"]) == (
        "Skipped", f"nothing changed: {stages} stages are up to date",
    )  # fmt: skip
    assert len(worker.ran()) == stages, "each stage ran once"
    worker.edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.1")
    assert ended(server, start(server, "stage", stage="ppo"))["type"] == "COMPLETED"
    assert worker.stages_ran() == {"ppo"}
    wrong = ended(server, start(server, "stage", stage="--preset=small"))
    assert wrong["type"] == "FAILED"
    assert wrong["message"].startswith("exit code 2\n"), "a stage is never taken for an option"
    assert "--preset=small" in wrong["message"]


def test_a_cancelled_run_stops_at_a_step_and_the_next_one_goes_on(server, worker):
    run = start(server, "pipeline")
    mark = worker.root / ".prefloop/scratch/sft/step"
    wait_until(lambda: mark.exists() and int(mark.read_text() or 0) > 3, 480)
    ask(server, f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    assert ended(server, run)["type"] == "CANCELLED"
    wait_until(lambda: not [item for item in worker.processes() if "flows.cli.main" in item.cmdline()], 60)
    assert int(mark.read_text()) < 30
    worker.ran()
    assert ended(server, start(server, "pipeline"))["type"] == "COMPLETED"
    resumed = next(line for line in worker.ran() if line.startswith("sft"))
    assert int(resumed.split()[1]) > 3, "it went on from where it was"


def test_a_slurm_worker_whose_time_is_over_leaves_a_checkpoint_from_which_the_next_one_goes_on(
    server, project, tmp_path
):
    variables = {
        "PREFLOOP_WORKSPACE": str(project.root), "PREFLOOP_TRACKING": "off", "STEPS_SFT": "30",
        "PREFLOOP_POOL": "workspace", "PREFLOOP_REMOTE": str(tmp_path / "exchange"), "USER": "tester",
        "PREFLOOP_CLONE": str(REPOSITORY),
    }  # fmt: skip
    mark = project.root / ".prefloop/scratch/sft/step"

    def job() -> subprocess.Popen[bytes]:
        with open(tmp_path / "job.log", "ab") as log:
            return subprocess.Popen(
                ["bash", str(INFRA / "slurm/worker.sbatch")], cwd=tmp_path,
                env={**server.variables, **variables}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    first = job()
    run = start(server, "pipeline")
    wait_until(lambda: mark.exists() and int(mark.read_text() or 0) > 3, 480)
    first.terminate()  # as Slurm does two minutes before the end: the batch script alone gets the signal
    assert first.wait(120) == 0, (tmp_path / "job.log").read_text()
    assert state(server, run)["type"] == "CRASHED"
    wait_until(lambda: not project.processes(), 60)
    assert int(mark.read_text()) < 30
    project.ran()
    second = job()
    try:
        assert ended(server, start(server, "pipeline"))["type"] == "COMPLETED"
        resumed = next(line for line in project.ran() if line.startswith("sft"))
        assert int(resumed.split()[1]) > 3, "it went on from where it was"
    finally:
        end(second)
