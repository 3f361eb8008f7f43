"""`prefloop run --on POOL` with a real Prefect server and a real worker process on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from flows.planning.planner import open_repo
from flows.workers.data import produced_inputs
from tests.ports import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def api(project, tmp_path) -> Iterator[dict[str, str]]:
    """Variables of a workspace whose Prefect server and one worker are running."""
    port = free_port()
    shared = {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_HOME": str(project.root / ".prefloop/prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFLOOP_WORKER_FOLDER": str(tmp_path / "worker"),
    }
    environment = project.environment(**shared)
    children = []

    def start(name: str, *command: str) -> None:
        with open(tmp_path / f"{name}.log", "w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=tmp_path, env=environment,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        children.append(child)

    start("server", "flows.server_process", str(port))
    project.wait_until(lambda: _healthy(port), 240)
    start("worker", "prefect", "worker", "start", "--pool", "prefloop", "--type", "process")
    yield shared
    for child in reversed(children):
        os.killpg(child.pid, signal.SIGTERM)
    for child in children:
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _healthy(port: int) -> bool:
    import urllib.request

    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2).status == 200
    except OSError:
        return False


def test_stages_with_models_run_on_the_worker_and_their_weights_stay_away(project, api, tmp_path):
    output = project.prefloop("run", "--on", "prefloop", **api)
    assert "sft  on pool prefloop: Completed" in output
    assert project.stages_ran() == {"ingest", "report"}, "here ran what does not compute with models"
    clones = {path.parents[1].name for path in (tmp_path / "worker").glob("*/*/.prefloop/ran.log")}
    assert clones == {"sft", "ppo", "dpo", "evaluate-sft", "evaluate-ppo", "evaluate-dpo"}
    assert not (project.root / "models").exists()
    assert (project.root / "metrics/evaluate/ppo.json").exists()
    assert (project.root / "runs/sft.json").exists()
    assert {stage["action"] for stage in project.plan().values()} == {"skip"}
    project.edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.1")
    project.prefloop("run", "--on", "prefloop", **api)
    again = list((tmp_path / "worker").glob("*/*/.prefloop/ran.log"))
    assert {path.parents[1].name: len(path.read_text().splitlines()) for path in again} == {
        "sft": 1, "ppo": 2, "dpo": 1, "evaluate-sft": 1, "evaluate-ppo": 2, "evaluate-dpo": 1,
    }  # fmt: skip
    project.ran()
    project.edit("params.yaml", "batch_size: 8", "batch_size: 16")
    output = project.prefloop("run", "evaluate@ppo")
    assert "models/ppo was fetched from the workers' remote" in output
    assert project.stages_ran() == {"evaluate@ppo"}
    assert [path.name for path in (project.root / "models").iterdir()] == ["ppo"], "what it reads, no more"
    project.dvc("pull", "models/dpo")
    assert (project.root / "models/dpo/weights").exists()


def test_without_a_server_that_workers_reach_the_pool_is_refused(project):
    output = project.prefloop("run", "--on", "prefloop", code=2)
    assert "--on prefloop needs a Prefect server that workers reach" in output


def test_inputs_of_a_stage_are_what_other_stages_write(finished):
    repo = open_repo(finished.root)

    def inputs(stage: str) -> list[str]:
        return sorted(map(str, produced_inputs(repo, stage)))

    assert inputs("ppo") == ["data/raw/preferences.jsonl", "models/sft"]
    assert inputs("report") == [f"metrics/evaluate/{name}.json" for name in ("dpo", "ppo", "sft")]
    assert inputs("ingest") == []
