"""The queue of a Prefect server: runs are put in, waited for, and looked at afterwards."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import httpx
import psutil

from benchmarks.queueing.orders import Order, parameters
from tasks.support.process import group_members

PAGE = 100
TRIES = 20
POLL_SECONDS = 2.0
STUCK_SECONDS = 600.0
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
Values = dict[str, Any]


class Api:
    """Prefect's API, asked as its own clients ask: again where the database is busy or no answer comes.

    Args:
        address: as PREFECT_API_URL has it.

    Attributes:
        again: how often that was.
    """

    def __init__(self, address: str) -> None:
        self._client = httpx.Client(base_url=f"{address}/", timeout=60)
        self.again = 0

    def ask(self, path: str, **body: object) -> Any:
        """What it answers; nothing may be asked that would be done twice when asked twice.

        Raises:
            httpx.HTTPError: it does not, or refuses.
        """
        return self._answer("POST", path, json=body)

    def get(self, path: str, **query: str) -> Any:
        """The same, of what is only read."""
        return self._answer("GET", path, params=query)

    def _answer(self, method: str, path: str, **words: Any) -> Any:
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            try:
                answer = self._client.request(method, path, **words)
                if answer.status_code < 500 or last:  # a query that took too long is a 500
                    return answer.raise_for_status().json()
            except httpx.TransportError:
                if last:
                    raise
            self.again += 1
            time.sleep(0.5 * (attempt + 1))
        raise AssertionError

    def pages(self, path: str, **body: object) -> list[Values]:
        """All rows of a filter."""
        found: list[Values] = []
        while page := self.ask(path, **body, limit=PAGE, offset=len(found)):
            found += page
        return found


def deployment(api: Api, name: str) -> str:
    """Id of a deployment that infra/setup.sh made."""
    (wanted,) = [found for found in api.ask("deployments/filter") if found["name"] == name]
    return str(wanted["id"])


def put(api: Api, deployment_id: str, queue: Sequence[Order]) -> dict[str, Order]:
    """Puts runs into the queue; flow run's id -> order."""
    path, found = f"deployments/{deployment_id}/create_flow_run", {}
    for order in queue:
        named = {"name": order.name, "idempotency_key": order.name}
        found[str(api.ask(path, **named, parameters=parameters(order))["id"])] = order
    return found


def online(api: Api, pool: str) -> int:
    """Workers of a pool that the server hears."""
    found = api.ask(f"work_pools/{pool}/workers/filter")
    return sum(worker["status"] == "ONLINE" for worker in found)


def wait_until_ended(
    api: Api, deployment_id: str, begun: datetime, count: int, each_time: Callable[[int], None]
) -> Counter[str]:
    """Waits until as many runs have ended of those that are due since `begun`. Returns runs by state.

    Exits where none has ended for ten minutes.

    Args:
        each_time: is told every few seconds how many have.
    """
    wanted, young = since_then(deployment_id, begun)
    ended, since = -1, time.monotonic()
    while True:
        states: Counter[str] = Counter()
        for state in (*ENDED, "SCHEDULED", "PENDING", "RUNNING"):
            states[state] = api.ask(
                "flow_runs/count",
                deployments=wanted,
                flow_runs={"state": {"type": {"any_": [state]}}, **young},
            )
        now = sum(states[state] for state in ENDED)
        if now != ended:
            ended, since = now, time.monotonic()
            shown = ", ".join(f"{number} {state.lower()}" for state, number in states.items() if number)
            print(f"  {shown}", file=sys.stderr, flush=True)
        each_time(ended)
        if ended >= count:
            return states
        if time.monotonic() - since > STUCK_SECONDS:
            sys.exit(f"no run has ended for {STUCK_SECONDS:.0f} s: {dict(states)}")
        time.sleep(POLL_SECONDS)


def flow_runs(api: Api, deployment_id: str, begun: datetime) -> list[Values]:
    """Every flow run of a deployment that is due since `begun`, each with its history under `states`."""
    wanted, young = since_then(deployment_id, begun)
    order = "EXPECTED_START_TIME_ASC"
    found = api.pages("flow_runs/filter", deployments=wanted, flow_runs=young, sort=order)
    for run in found:
        run["states"] = api.get("flow_run_states/", flow_run_id=run["id"])
    return found


def since_then(deployment_id: str, begun: datetime) -> tuple[Values, Values]:
    """Filters of deployments and of flow runs."""
    return {"id": {"any_": [deployment_id]}}, {"expected_start_time": {"after_": begun.isoformat()}}


def moment(state: Values) -> float:
    """When a state began (seconds since the epoch)."""
    return datetime.fromisoformat(str(state["timestamp"])).timestamp()


def first(run: Values, kind: str) -> Values | None:
    """The first state of a type in a run's history."""
    states = sorted((state for state in run["states"] if state["type"] == kind), key=moment)
    return states[0] if states else None


def resident_mib(group: int) -> float:
    """Memory that a process group holds, shared pages counted with each process."""
    total = 0
    for pid in group_members(group):
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue
    return total / 2**20
