"""Runs that are queued at once for several workers, each with a clone: benchmarks/load.py at a small size."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from benchmarks.queueing.orders import orders
from benchmarks.queueing.run import DEPLOYMENT, POOL, Fleet, work_off
from tests.infra.conftest import Server
from tests.infra.test_setup import ask

pytestmark = [pytest.mark.slow, pytest.mark.servers]

WORKERS = 2


@pytest.fixture
def shared(server: Server) -> Iterator[Server]:
    """The server with limits for as many clones, as PREFLOOP_WORKSPACES sets them."""
    (wanted,) = [found for found in ask(server, "deployments/filter") if found["name"] == DEPLOYMENT]

    def limit(count: int) -> None:
        for path in (f"work_pools/{POOL}", f"deployments/{wanted['id']}"):
            answer = httpx.patch(f"{server.api}/{path}", json={"concurrency_limit": count}, timeout=60)
            answer.raise_for_status()

    limit(WORKERS)
    yield server
    limit(1)


def test_each_of_a_queues_runs_is_done_once_in_one_clone(shared, tmp_path):
    variables = {"PREFECT_API_URL": shared.api, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    done = work_off(Fleet.make(tmp_path / "fleet", WORKERS), orders(8), variables, lambda: 0.0)
    assert done.wrong == []
    assert done.counts["flow runs completed"] == 8
    assert done.counts["stages ran"] >= 6, "new data came while it went on, which every stage has to take"
