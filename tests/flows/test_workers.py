"""`prefloop run --on POOL` with a real Prefect server and a real worker process on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from flows.workers.exchange import fetch_code, open_exchange, publish_code
from flows.workers.stage import produced_inputs
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


def test_stages_with_models_run_on_the_worker_and_their_outputs_come_home(project, api, tmp_path):
    output = project.prefloop("run", "--on", "prefloop", **api)
    assert "sft  on pool prefloop: Completed" in output
    assert project.stages_ran() == {"ingest", "report"}, "here ran what does not compute with models"
    clones = {path.parents[1].name for path in (tmp_path / "worker").glob("*/*/.prefloop/ran.log")}
    assert clones == {"sft", "ppo", "dpo", "evaluate-sft", "evaluate-ppo", "evaluate-dpo"}
    assert (project.root / "models/ppo/weights").exists()
    assert {stage["action"] for stage in project.plan().values()} == {"skip"}
    project.edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.1")
    project.prefloop("run", "--on", "prefloop", **api)
    again = list((tmp_path / "worker").glob("*/*/.prefloop/ran.log"))
    assert {path.parents[1].name: len(path.read_text().splitlines()) for path in again} == {
        "sft": 1, "ppo": 2, "dpo": 1, "evaluate-sft": 1, "evaluate-ppo": 2, "evaluate-dpo": 1,
    }  # fmt: skip


def test_without_a_server_that_workers_reach_the_pool_is_refused(project):
    output = project.prefloop("run", "--on", "prefloop", code=2)
    assert "--on prefloop needs a Prefect server that workers reach" in output


def test_a_worker_gets_the_working_tree_as_it_is_and_git_stays_as_it_was(project, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFLOOP_REMOTE", str(tmp_path / "shared"))
    project.edit("tasks/sft.py", "1", "2")
    (project.root / "tasks/new.py").write_text("NEW = True\n")
    before = project.shell("git", "status", "--porcelain")
    exchange = open_exchange(project.root)
    commit = publish_code(project.root, exchange)
    assert project.shell("git", "status", "--porcelain") == before
    clone = tmp_path / "clone"
    fetch_code(clone, str(exchange.code), commit)
    assert (clone / "tasks/sft.py").read_text().startswith("LEARNING = 2\n")
    assert (clone / "tasks/new.py").exists()
    assert publish_code(project.root, exchange) == commit, "the same tree is the same commit"


def test_inputs_of_a_stage_are_what_other_stages_write(finished):
    assert produced_inputs(finished.root, "ppo") == ["models/sft", "data/raw/preferences.jsonl"]
    assert produced_inputs(finished.root, "report") == [
        "metrics/evaluate/sft.json",
        "metrics/evaluate/ppo.json",
        "metrics/evaluate/dpo.json",
    ]
    assert produced_inputs(finished.root, "ingest") == []
