"""infra/setup.sh on a real Prefect server: work pools, deployments, automations; twice with one result."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from tests.infra.conftest import INFRA, Server
from tests.ports import free_port

DECLARED = yaml.safe_load((INFRA / "prefect.yaml").read_text())["deployments"]
AUTOMATIONS = {"prefloop zombie runs", "prefloop labelled batch"}


def ask(server: Server, path: str, **body: object) -> Any:
    """Asks as Prefect's own clients do: once more when the database is busy."""
    request = urllib.request.Request(
        f"{server.api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for _ in range(60):
        try:
            return json.loads(urllib.request.urlopen(request, timeout=30).read())
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(1)
    raise AssertionError(f"{path}: the database stayed busy")


@pytest.mark.parametrize("deployment", DECLARED, ids=lambda deployment: deployment["name"])
def test_each_entry_point_is_a_flow_that_takes_what_its_deployment_gives(deployment):
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    assert set(deployment.get("parameters", {})) <= set(flow.parameters.properties)


@pytest.mark.slow
def test_every_deployment_is_there_as_declared(server):
    found = {deployment["name"]: deployment for deployment in ask(server, "deployments/filter")}
    assert set(found) == {deployment["name"] for deployment in DECLARED}
    for declared in DECLARED:
        there = found[declared["name"]]
        assert there["entrypoint"] == declared["entrypoint"]
        assert there["work_pool_name"] == declared["work_pool"]["name"]
        assert not there["pull_steps"], "the code is installed where the worker is"
        limit = there["global_concurrency_limit"]
        assert (limit and limit["limit"]) == declared.get("concurrency_limit", {}).get("limit")
    (pool,) = [pool for pool in ask(server, "work_pools/filter") if pool["name"] == "workspace"]
    assert pool["concurrency_limit"] == 1, "one run a workspace, whatever deployment starts it"


@pytest.mark.slow
def test_the_server_schedules_every_night_at_two(server):
    nightly = next(item for item in ask(server, "deployments/filter") if item["name"] == "nightly")
    deadline = time.monotonic() + 60
    while not (runs := ask(server, "flow_runs/filter", deployments={"id": {"any_": [nightly["id"]]}})):
        assert time.monotonic() < deadline, (server.folder / "server.log").read_text()[-2000:]
        time.sleep(0.5)
    assert {run["expected_start_time"][10:19] for run in runs} == {"T02:00:00"}
    assert {run["state"]["type"] for run in runs} == {"SCHEDULED"}


@pytest.mark.slow
def test_again_it_changes_nothing(server):
    def there() -> dict[str, Any]:
        automations = {item["id"]: item for item in ask(server, "automations/filter")}
        deployments = {item["id"] for item in ask(server, "deployments/filter")}
        pools = {item["id"]: item["concurrency_limit"] for item in ask(server, "work_pools/filter")}
        return {"automations": automations, "deployments": deployments, "pools": pools}

    before = there()
    assert {item["name"] for item in before["automations"].values()} == AUTOMATIONS
    output = server.run("bash", "infra/setup.sh")
    assert "prefloop zombie runs: unchanged" in output
    assert "prefloop labelled batch: unchanged" in output
    assert there() == before


STUB = """#!/bin/sh
printf '%s\\n' "$*" >>{log}
case "$*" in *"deploy "*) cp "$6" {folder}/deployed.yaml ;; esac
"""


def test_clones_that_share_a_pool_raise_its_limit_and_those_of_its_deployments(tmp_path):
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(STUB.format(log=log, folder=tmp_path))
    python.chmod(0o755)
    variables = {"PATH": "/usr/bin:/bin", "PREFECT_API_URL": "http://127.0.0.1:1/api", "PYTHON": str(python)}
    server = Server("", variables, tmp_path)
    server.run("bash", "infra/setup.sh", PREFLOOP_WORKSPACES="8")
    assert "set-concurrency-limit workspace 8\n" in log.read_text()
    deployed = yaml.safe_load((tmp_path / "deployed.yaml").read_text())["deployments"]
    for declared, given in zip(DECLARED, deployed, strict=True):
        limited = "concurrency_limit" in declared
        assert given == declared | (
            {"concurrency_limit": {"limit": 8, "collision_strategy": "ENQUEUE"}} if limited else {}
        )
    for wrong in ("0", "many", "-1"):
        assert "is a number from 1" in server.run("bash", "infra/setup.sh", code=2, PREFLOOP_WORKSPACES=wrong)


def test_without_a_server_setup_says_which_variable_is_missing(tmp_path):
    server = Server("", {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, tmp_path)
    said = server.run("bash", "infra/setup.sh", code=2)
    assert "setup.sh: PREFECT_API_URL is not set: export PREFECT_API_URL=http" in said
    away = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api", "PYTHON": sys.executable}
    said = server.run("bash", "infra/setup.sh", code=7, **away)
    assert f"no Prefect server answers at {away['PREFECT_API_URL']}: start it" in said
    assert "Traceback" not in said
