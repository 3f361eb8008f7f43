"""Deployments on a real server, taken by a real worker of a tiny workspace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.flows.conftest import Project
from tests.flows.conftest import project as project
from tests.flows.conftest import project_template as project_template
from tests.infra.conftest import Server, end
from tests.infra.test_setup import ask
from tests.waiting import wait_until

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
    end(child, 10)  # Prefect's worker does not end on the signal
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
