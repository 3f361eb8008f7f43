"""Waiting for a flow run on a pool, and noticing that whoever ran it is gone.

Clocks of several machines do not agree, and jump. So nothing here compares times of day: a flow run lives as
long as something about it changes, and how long nothing did is measured by this machine's own steady clock.
What changes is the count that its process writes to its label every few seconds (flows/workers/alive.py);
before that process is there, what the server knows of the worker that took it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.settings import STATE
from flows.stage_run import StageFailed
from flows.supervision import Stopped
from flows.workers.attempts import fence, is_fenced
from flows.workers.outcome import read_failure
from flows.workers.patience import PatientClient, is_absence
from prefloop.errors import InfrastructureError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

POLL_SECONDS = 1.0
LABEL = "prefloop.alive"
"""Label of a flow run: how often its process said that it lives."""
START_SECONDS = 900.0
"""How long a worker may take from taking a flow run to its process, an image to fetch included."""
WORKER_BEATS = 2.5
"""Intervals of a worker's own sign of life after whose silence what it took is lost."""


class Vigil:
    """Measures for how long nothing changed.

    Args:
        clock: seconds on a steady clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sign: Any = None
        self._since = clock()

    def silence(self, sign: Any) -> float:
        """Seconds since what is seen last changed."""
        if sign != self._sign:
            self._sign = sign
            self._since = self._clock()
        return self._clock() - self._since

    def blind(self) -> None:
        """Nothing could be seen for a while: what happened meanwhile is nobody's silence."""
        self._since = self._clock()


def wait_for(
    ask: PatientClient,
    run: FlowRun,
    stage: str,
    pool: str,
    *,
    lost_seconds: float,
    stopped: Callable[[], bool],
    show: Callable[[str, str], None],
) -> None:
    """Waits until a flow run has completed.

    Raises:
        StageFailed: it failed by itself, or somebody cancelled it.
        InfrastructureError: it crashed, or whoever ran it gave no sign of life; it is fenced then.
        Stopped: the run was asked to end; the flow run is cancelled.
    """
    vigil, started = Vigil(), Vigil()
    seen, absences, flow_run = "", ask.absences, run.id
    while True:
        run = ask(lambda client: client.read_flow_run(flow_run))
        state = run.state
        if ask.absences != absences:
            absences = ask.absences
            vigil.blind()
            started.blind()
        if state is not None and state.name != seen:
            seen = str(state.name)
            show(stage, f"on pool {pool}: {seen}")
        if is_fenced(run):
            raise InfrastructureError(
                f"another coordinator gave up the attempt at stage {stage} (flow run {run.id})"
            )
        if state is not None and state.is_final():
            break
        if stopped():
            _cancel(flow_run, partial(show, stage))
            raise Stopped(stage)
        if why := _lost(ask, run, vigil, started, lost_seconds):
            ask(partial(fence, run=run, why=why))
            raise InfrastructureError(f"stage {stage} on pool {pool}: {why} (flow run {run.id})")
        time.sleep(POLL_SECONDS)
    _judge(state, stage, pool)


def _judge(state: State, stage: str, pool: str) -> None:
    """Returns for a completed flow run, and raises what any other end means."""
    if state.is_completed():
        return
    lines = (state.message or "").splitlines()[-12:]
    if state.is_crashed():
        raise InfrastructureError(
            f"stage {stage} on pool {pool}: {lines[0] if lines else 'its flow run crashed'}",
            "run again: it goes on from its last checkpoint, where workers share these",
        )
    if state.is_cancelled():
        raise StageFailed(stage, 1, STATE / "logs", ["its flow run was cancelled", *lines])
    code, words = read_failure(state.message or "")
    raise StageFailed(stage, code, STATE / "logs", words or [f"its flow run ended as {state.name}"])


def _lost(ask: PatientClient, run: FlowRun, vigil: Vigil, started: Vigil, lost_seconds: float) -> str:
    """Why a flow run is lost; empty while it is not, or nobody has taken it."""
    if run.state is None or not (
        run.state.is_running() or run.state.is_pending() or run.state.is_cancelling()
    ):
        vigil.silence(None)
        started.silence(None)
        return ""
    if not run.state.is_pending():
        silent = vigil.silence((str(run.state.id), run.labels.get(LABEL)))
        gone = silent > lost_seconds
        return f"no sign of life of its process for {silent:.0f} s: the worker is gone, or cut off" * gone
    if started.silence(str(run.state.id)) > START_SECONDS:
        return f"a worker took it and did not start it within {START_SECONDS:.0f} s"
    name = str(run.labels.get("prefect.worker.name", ""))
    pool = str(run.labels.get("prefect.work-pool.name", ""))
    if not name or not pool:
        return ""
    sign, interval = ask(lambda client: _worker(client, pool, name))
    silent = vigil.silence((str(run.state.id), sign))
    if silent > max(lost_seconds, WORKER_BEATS * interval):
        return f"worker {name} took it, and gave no sign of life for {silent:.0f} s"
    return ""


def _worker(client: SyncPrefectClient, pool: str, name: str) -> tuple[str, float]:
    """What the server knows of a worker's life, to be compared with what it knew before, and how often that
    changes (seconds)."""
    for worker in client.read_workers_for_work_pool(pool):
        if worker.name == name:
            return str(worker.last_heartbeat_time), float(worker.heartbeat_interval_seconds or 30)
    return "", 30.0


def _cancel(run: UUID, show: Callable[[str], None]) -> None:
    """Asks for the end of a flow run; a server that is away is not waited for, since the user waits."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
    from prefect.states import Cancelling

    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}), get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Cancelling(), force=True)
    except Exception as error:
        if not is_absence(error):
            raise
        show("goes on, since the Prefect server is away; the next run joins it")
