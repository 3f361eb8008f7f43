"""The Prefect flow: one task a stage, as DVC's graph has them; independent stages side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.planning.model import Action, Plan, StagePlan
from flows.room import Room
from flows.slots import Slots
from flows.stage_run import Outcome, StageResult
from flows.supervision import Stopped
from prefloop.errors import PrefloopError

DELIVERY_SECONDS = 15.0

RunOne = Callable[[StagePlan], StageResult]


@dataclass
class Report:
    """What came of a run.

    Attributes:
        results: stages that ended well.
        failures: stages that failed, with the error.
        held_back: stages that did not start because one before them failed, or the run was stopped.
        trouble: why Prefect has no full record of the run; empty when it has.
    """

    results: dict[str, StageResult] = field(default_factory=dict)
    failures: dict[str, PrefloopError] = field(default_factory=dict)
    held_back: list[str] = field(default_factory=list)
    trouble: str = ""


def run_pipeline(
    plan: Plan,
    run_one: RunOne,
    *,
    name: str,
    jobs: int,
    alone: Collection[str] = (),
    room: Room | None = None,
    after: Mapping[str, Callable[[], str]],
) -> Report:
    """Runs a plan as a Prefect flow.

    A stage starts when its parents have ended well; when one fails, what does not depend on it goes on.

    Args:
        run_one: runs a stage to its end; PrefloopError and Stopped are understood.
        name: name of the flow run.
        jobs: stages at once (count).
        alone: stages that run while no other does.
        room: what stages side by side share of this machine; None asks nothing of it.
        after: steps after the last stage, by name; each says what it did.
    """
    report = Report()
    slots = Slots(plan.stages, jobs, alone, room)

    def attempt(what: str, work: Callable[[], State]) -> State:
        try:
            return work()
        except Stopped:
            report.held_back.append(what)
            return Cancelled(message="the run was asked to end")
        except Exception as error:
            known = (
                error
                if isinstance(error, PrefloopError)
                else PrefloopError(f"{type(error).__name__}: {error}")
            )
            report.failures[what] = known
            get_run_logger().error(str(error))
            raise

    def run_stage(stage: StagePlan) -> State:
        if stage.action is Action.SKIP:
            report.results[stage.name] = StageResult(stage.name, Outcome.SKIPPED, 0.0)
            slots.done(stage.name)
            return Completed(name="Skipped", message="nothing it reads changed")
        with slots.place(stage.name):
            result = run_one(stage)
            report.results[stage.name] = result
            slots.done(stage.name)
        for fault in result.faults:
            get_run_logger().warning("an attempt was lost to the infrastructure: %s", fault)
        why = list(map(str, stage.reasons[:5]))
        why += [f"attempt {len(result.faults) + 1}"] if result.faults else []
        return Completed(name=result.outcome.value, message="; ".join(why))

    @task(cache_policy=NO_CACHE, persist_result=False)
    def step(what: str, work: Callable[[], State]) -> Any:
        return attempt(what, work)

    def submit(what: str, work: Callable[[], State], parents: list[PrefectFuture[Any]]) -> PrefectFuture[Any]:
        submitted: Any = step.with_options(name=what, task_run_name=what)
        return cast("PrefectFuture[Any]", submitted.submit(what, work, wait_for=parents))

    @flow(
        name="prefloop",
        flow_run_name=name,
        task_runner=_threads(len(plan.stages) + len(after)),
        validate_parameters=False,
    )
    def pipeline() -> Any:
        futures: dict[str, PrefectFuture[Any]] = {}
        for stage in plan.stages:
            parents = [futures[parent] for parent in stage.parents if parent in futures]
            futures[stage.name] = submit(stage.name, partial(run_stage, stage), parents)
        for what, work in after.items():
            futures[what] = submit(what, partial(_completed, work), list(futures.values()))
        wait(list(futures.values()))
        if report.failures or report.held_back:
            return Failed(message=f"failed or stopped: {', '.join([*report.failures, *report.held_back])}")
        return Completed(message=f"{len(report.results)} stages")

    try:
        pipeline(return_state=True)
    except Exception as error:  # Prefect's server went away: what the stages did stands
        report.trouble = f"Prefect could not record the run: {type(error).__name__}: {error}"
    ended = {*report.results, *report.failures, *report.held_back}
    report.held_back += [stage.name for stage in plan.stages if stage.name not in ended]
    _deliver_logs_and_events()
    return report


def _as_known(error: Exception) -> PrefloopError:
    return error if isinstance(error, PrefloopError) else PrefloopError(f"{type(error).__name__}: {error}")


def _completed(work: Callable[[], str]) -> State:
    return Completed(message=work())


def _threads(tasks: int) -> TaskRunner[PrefectFuture[Any]]:
    """A thread a task: while a task waits for its parents it holds one, which they must not lack."""
    return cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=tasks))


def _deliver_logs_and_events() -> None:
    """Prefect delivers both in the background until the process exits; our server ends before that."""
    APILogWorker.drain_all(timeout=DELIVERY_SECONDS)
    EventsWorker.drain_all(timeout=DELIVERY_SECONDS)
