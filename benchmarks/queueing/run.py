"""A queue from its first run to the last one's end, and what the records say then."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.overhead.turns import PREFLOOP, Cost, timed
from benchmarks.queueing import queue as prefect_queue
from benchmarks.queueing.figures import QueueFigures, figures
from benchmarks.queueing.orders import Order
from benchmarks.queueing.proof import (
    ended_once,
    in_one_place,
    lines_of,
    parameters_once,
    stages_once,
    tracked_once,
)
from benchmarks.queueing.servers import mlflow, prefect, setup, workers
from benchmarks.queueing.workspaces import add_rows, make_clones, make_workspace
from tasks.support.mlflow_store import RUN_TAG

POOL, DEPLOYMENT = "workspace", "pipeline"
NEW_DATA = (1 / 2,)
"""Shares of the runs after which new data come into every clone."""
ONLINE_SECONDS = 300.0


@dataclass(frozen=True)
class Done:
    """What came of a queue.

    Attributes:
        counts: what was counted -> how many.
        wrong: what the records say that should not be; empty where all is well.
    """

    queue: list[Order]
    figures: QueueFigures
    counts: dict[str, int]
    wrong: list[str]


def run_queue(
    folder: Path, queue: list[Order], count: int, prefect_database: str, mlflow_database: str
) -> Done:
    """Queues all of `queue` at once for `count` workers, on servers of its own.

    Args:
        folder: scratch.
        prefect_database, mlflow_database: URLs; empty takes SQLite.
    """
    say(f"a workspace, and {count} clones")
    place = Fleet.make(folder / "fleet", count)
    for name in ("prefect", "mlflow"):
        (folder / name).mkdir()
    with (
        prefect(folder / "prefect", prefect_database) as (server, group),
        mlflow(folder / "mlflow", mlflow_database) as (tracking, _),
    ):
        say("infra/setup.sh")
        api = f"{server.address}/api"
        setup(place.clones[0], {"PREFECT_API_URL": api, "PREFLOOP_WORKSPACES": str(count)})
        variables = {"PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": tracking.address}
        return work_off(place, queue, variables, lambda: prefect_queue.resident_mib(group))


@dataclass(frozen=True)
class Fleet:
    """Clones of one workspace, everything up to date.

    Attributes:
        alone: what `prefloop run` without work costs there by itself.
        logs: an empty folder.
    """

    clones: list[Path]
    alone: Cost
    logs: Path

    @classmethod
    def make(cls, folder: Path, count: int) -> Fleet:
        template, logs = folder / "template", folder / "logs"
        make_workspace(template)
        alone = timed(template, PREFLOOP, PREFLOOP_TRACKING="off")
        (template / ".prefloop/witness.jsonl").unlink()
        logs.mkdir()
        return cls(make_clones(template, folder, count), alone, logs)


def work_off(
    fleet: Fleet, queue: list[Order], variables: dict[str, str], server_mib: Callable[[], float]
) -> Done:
    """Queues all of `queue` at once on a server that setup has seen, and waits until every run has ended.

    Args:
        variables: PREFECT_API_URL and MLFLOW_TRACKING_URI; without the latter nothing is tracked.
        server_mib: what Prefect's server holds at the moment.
    """
    tracking, clones = variables.get("MLFLOW_TRACKING_URI", ""), fleet.clones
    variables = {**variables, "PREFLOOP_WARM": "off", "PREFECT_CLI_COLORS": "false"}
    if not tracking:
        variables["PREFLOOP_TRACKING"] = "off"
    api = prefect_queue.Api(variables["PREFECT_API_URL"])
    wanted, begun = prefect_queue.deployment(api, DEPLOYMENT), datetime.now(UTC)
    before = children_seconds()
    most, due = 0.0, [int(share * len(queue)) for share in NEW_DATA]

    def each_time(ended: int) -> None:
        nonlocal most
        most = max(most, server_mib())
        if due and ended >= due[0]:
            due.pop(0)
            for clone in clones:
                add_rows(clone, len(NEW_DATA) - len(due))

    with workers(clones, fleet.logs, variables):
        until(lambda: prefect_queue.online(api, POOL) >= len(clones), ONLINE_SECONDS, "the workers")
        say(f"{len(queue)} runs into the queue")
        ordered = prefect_queue.put(api, wanted, queue)
        prefect_queue.wait_until_ended(api, wanted, begun, len(queue), each_time)
    cpu = children_seconds() - before
    say("what the records say")
    runs = prefect_queue.flow_runs(api, wanted, begun)
    witness, histories = lines_of(clones, "witness.jsonl"), lines_of(clones, "history.jsonl")
    wrong = [
        *ended_once(ordered, runs),
        *in_one_place(ordered, runs, witness),
        *stages_once(ordered, witness, histories),
        *parameters_once(ordered, witness),
    ]
    ran = [line for lines in witness.values() for line in lines if line["stage"] != "environment"]
    well = [run for run in runs if run["state"]["type"] == "COMPLETED"]
    counts = {
        "flow runs completed": len(well),
        "of them without work": sum(run["state"]["name"] == "Skipped" for run in runs),
        "stages ran": len(ran),
    }
    if tracking:
        for clone in clones:
            timed(clone, ("tasks.deliver",), **variables)
        tracked = stage_runs(tracking)
        wrong += tracked_once(witness, tracked)
        counts["runs of stages in MLflow"] = len(tracked)
    if not well:
        sys.exit("\n".join(["no run ended well:", *wrong[:20]]))
    alone = (fleet.alone.wall, fleet.alone.cpu)
    return Done(queue, figures(well, len(clones), alone=alone, cpu=cpu, server_mib=most), counts, wrong)


def stage_runs(address: str) -> list[tuple[str, str, str]]:
    """(stage, key, status) of every stage's run in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    found, token = [], None
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    while True:
        page = client.search_runs(experiments, f"tags.`{RUN_TAG}` != ''", max_results=1000, page_token=token)
        for run in page:
            if stage := run.data.tags.get("prefloop.stage"):
                found.append((stage, run.data.tags["prefloop.key"], run.info.status))
        token = page.token
        if not token:
            return found


def children_seconds() -> float:
    """Processor time of what this process started and has seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def until(check: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits; exits where it takes longer."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            sys.exit(f"{what} did not come within {seconds:.0f} s")
        time.sleep(0.5)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
