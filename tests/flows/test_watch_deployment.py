"""The flow that a deployment runs when data changes, with a real Prefect server and a real pipeline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from tasks.support.locks import held
from tests.ports import free_port

pytestmark = pytest.mark.slow

CALL = """
import json, sys
from flows.watching.deployment import data_change
print("came of it:", data_change(**json.loads(sys.argv[1])))
"""


@pytest.fixture
def server(project, tmp_path) -> Iterator[dict[str, str]]:
    """Variables that name a Prefect server on loopback."""
    port = free_port()
    variables = {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_HOME": str(project.root / ".prefloop/prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    with open(tmp_path / "server.log", "w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.server_process", str(port)], cwd=tmp_path,
            env=project.environment(**variables), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        project.wait_until(healthy)
        yield variables
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def test_a_batch_runs_the_pipeline_once_and_again_nothing(project, server):
    batch = {"workspace": str(project.root), "rows": [{"prompt": "p", "chosen": "a", "rejected": "b"}]}

    def call(**parameters):
        return project.shell(sys.executable, "-c", CALL, json.dumps(parameters), **server)

    assert "came of it: ran" in call(**batch)
    assert "ingest" in project.stages_ran()
    (version,) = (project.root / "data/sources").glob("*-native")
    rows = (version / "preferences.jsonl").read_text().splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == ["p"]
    assert "came of it: ran" in call(**batch)
    assert project.ran() == []
    with held(project.root / ".prefloop/watch.lock", "a live watch"):
        batch["rows"][0]["prompt"] = "q"
        assert "came of it: handed over" in call(**batch)
    assert project.ran() == []
    assert len(list((project.root / "data/incoming/native").glob("batch-*.jsonl"))) == 1


def test_a_run_that_fails_fails_the_flow(project, server):
    parameters = json.dumps({"workspace": str(project.root)})
    done = subprocess.run(
        [sys.executable, "-c", CALL, parameters],
        cwd=project.root, env=project.environment(FAIL="ingest", **server),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "failed with exit code 3" in done.stderr
    assert "the data set has no row" in done.stderr
