"""A worker's side of an attempt: signs of life, GPUs while it runs, and what its end means."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Crashed, Failed

from flows.cores import device_of
from flows.gpus import own_gpus
from flows.retries import is_fault
from flows.room import visible_gpus
from flows.supervision import Stopped
from flows.workers.attempts import is_fenced
from flows.workers.limits import limit_name
from flows.workers.outcome import write_failure
from flows.workers.patience import PatientClient, is_absence
from flows.workers.waiting import LABEL
from prefloop.errors import ConfigError, PrefloopError

if TYPE_CHECKING:
    from pathlib import Path

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import State

BEATS = 4
"""Signs of life in the time after whose silence an attempt counts as lost."""
SHORTEST_BEAT = 0.2
LEASE_SECONDS = 60.0
"""How long GPUs of a pool stay taken after the process that held them was killed; Prefect allows no less."""
GPUS = "PREFLOOP_STAGE_GPUS"


def told(run: Callable[..., None]) -> Callable[..., Any]:
    """Has a flow function give signs of life while it runs, and end in a state that says what failed.

    A fault of the infrastructure, and a request to end from outside, end as crashed: the coordinator tries
    again. What the stage did by itself ends as failed, with its exit code. The function's parameters `gpus`
    and `lost_seconds` say how many GPUs of the pool it occupies, and when it counts as lost.
    """

    @functools.wraps(run)
    def attempt(*arguments: Any, **named: Any) -> Any:
        given = inspect.signature(run).bind(*arguments, **named)
        given.apply_defaults()
        asked, lost_seconds = given.arguments["gpus"], given.arguments["lost_seconds"]
        me, logger = UUID(str(flow_run.get_id())), get_run_logger()
        try:
            with (
                _alive(me, max(lost_seconds / BEATS, SHORTEST_BEAT)),
                _gpus_of_pool(asked, logger),
                _gpus_here(asked, logger),
            ):
                run(*arguments, **named)
        except Stopped:
            if _cancelled(me):
                raise
            return Crashed(
                message="asked to end: its stage has stopped, with a checkpoint where it makes these"
            )
        except Exception as error:
            return _ended(error, logger)
        return None

    return attempt


def stage_gpus(root: Path) -> dict[str, str]:
    """The variables with which a stage sees the GPUs that its attempt holds; none on a CPU."""
    held = os.environ.get(GPUS)
    return {"CUDA_VISIBLE_DEVICES": held} if held and device_of(root) == "cuda" else {}


def _ended(error: Exception, logger: Any) -> State:
    logger.error("%s", error)
    if is_fault(error, elsewhere=True) or is_absence(error):
        return Crashed(message=str(error) or type(error).__name__)
    if isinstance(error, PrefloopError):
        return Failed(message=write_failure(error.exit_code, str(error).splitlines()))
    logger.error("this is a defect:", exc_info=error)
    return Failed(message=write_failure(1, [f"{type(error).__name__}: {error}"]))


@contextmanager
def _alive(me: UUID, seconds: float) -> Iterator[None]:
    """Writes a count to the flow run's label while the block runs; ends it once the attempt is given up."""
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=(me, seconds, done), name="signs-of-life", daemon=True)
    _give_up_if_fenced(me)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _beat(me: UUID, seconds: float, done: threading.Event) -> None:
    count = 0
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        while not done.is_set():
            count += 1
            try:
                with get_client(sync_client=True) as client:
                    while not done.wait(seconds if count > 1 else 0):
                        client.update_flow_run_labels(me, {LABEL: count})
                        count += 1
                        if is_fenced(client.read_flow_run(me)):
                            done.set()
                            # The supervisor of the stage, or Prefect's engine, ends all of it softly.
                            os.kill(os.getpid(), signal.SIGTERM)
            except Exception as error:  # the server is away: the stage goes on, and says so again later
                logging.getLogger(__name__).info("no sign of life could be given: %s", error)
                done.wait(min(seconds, 5.0))


def _give_up_if_fenced(me: UUID) -> None:
    """Refuses to begin an attempt that was given up before its process was there."""

    def look(client: SyncPrefectClient) -> bool:
        return is_fenced(client.read_flow_run(me))

    if PatientClient(LEASE_SECONDS, lambda: False, logging.getLogger(__name__).warning)(look):
        raise Stopped("this attempt was given up: another one runs the stage")


@contextmanager
def _gpus_of_pool(count: int, logger: Any) -> Iterator[None]:
    """Occupies GPUs of the pool on the server; they are free again when this process is gone."""
    if not count:
        yield
        return
    from prefect.concurrency.sync import concurrency

    pool = str(deployment.get_name())
    logger.info("asks pool %s for %d GPU(s)", pool, count)
    # A server that is away must not end a training, be it asked to renew the lease or to take it back.
    held = concurrency(
        limit_name(pool), occupy=count, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False
    )
    held.__enter__()
    try:
        yield
    finally:
        try:
            held.__exit__(None, None, None)
        except Exception as error:
            if not is_absence(error):
                raise
            logger.warning("GPUs of pool %s could not be given back; their lease ends by itself", pool)


@contextmanager
def _gpus_here(count: int, logger: Any) -> Iterator[None]:
    """Holds GPUs of this machine for the stage; none where the machine has none and computes on a CPU."""
    gpus = visible_gpus()
    if not count or not gpus:
        yield
        return
    if count > len(gpus):
        raise ConfigError(
            f"the stage asks for {count} GPUs, and this worker sees {len(gpus)}",
            "start a worker that sees as many, or ask for fewer in resources.stages",
        )
    with own_gpus(count, gpus, say=logger.info) as variables:
        os.environ[GPUS] = variables["CUDA_VISIBLE_DEVICES"]
        try:
            yield
        finally:
            os.environ.pop(GPUS, None)


def _cancelled(me: UUID) -> bool:
    """True where somebody cancelled the flow run; False for another request to end, or if nobody can say."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(me).state
    except Exception:
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())
