"""One run of the pipeline, from the plan to the promotion decision."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from flows import settings
from flows.cores import taking_every_core
from flows.gpus import own_gpus
from flows.head_start import RunOne, head_start
from flows.late_delivery import deliver_late
from flows.leftovers import settle, unfinished
from flows.placement import decide, placed
from flows.planning.model import Action, Plan, StagePlan
from flows.planning.planner import make_plan, open_repo, pipeline_stages
from flows.planning.show import plan_lines
from flows.preparation import import_text_sources, prepare
from flows.promotion import promote, promotion_due
from flows.rescue import refuse, rescue
from flows.retries import Patience, persist
from flows.room import Room, refuse_what_has_no_room, room_here
from flows.server import prefect_api
from flows.stage_run import Outcome, StageResult
from flows.supervision import Stopped, Supervisor, supervise
from flows.terminal import Terminal
from flows.warm import find_warm, warm_starts
from flows.workers.exchange import open_exchange
from flows.workers.here import run_here
from flows.workers.pools import Pools
from prefloop.config.params import load_params
from prefloop.config.resources import ResourcesConfig
from prefloop.errors import PrefloopError
from tasks.support.pipeline import tracked_pipeline

POLL_SECONDS = 0.5
RAN = Outcome.RAN.name.lower()

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What is asked of a run.

    Attributes:
        targets: stages; empty takes all.
        force: run the targets although nothing changed; hand-edited outputs are moved away first.
        jobs: stages at once on this machine (count).
        pool: Prefect work pool for all stages with models; empty does as `resources.place` says.
    """

    targets: tuple[str, ...] = ()
    force: bool = False
    jobs: int = 2
    pool: str = ""


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        plan: what was decided before.
        outcomes: stage -> what came of it.
        failures: stage -> its error.
        held_back: stages that did not start.
        signal_number: the signal that stopped it, None if none did.
        seconds: wall time.
    """

    plan: Plan
    outcomes: dict[str, str] = field(default_factory=dict)
    failures: dict[str, PrefloopError] = field(default_factory=dict)
    held_back: tuple[str, ...] = ()
    signal_number: int | None = None
    seconds: float = 0.0

    @property
    def stopped(self) -> bool:
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """0, 130 or 143 when a signal stopped it, else that of the first failure."""
        if self.signal_number is not None:
            return 128 + self.signal_number
        return next((error.exit_code for error in self.failures.values()), 0)


def new_pipeline_id() -> str:
    """Id of a pipeline run: its start in UTC."""
    return datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S-%f")[:-3]


def execute(root: Path, request: Request, terminal: Terminal) -> Ended:
    """Plans and runs; without work to do, ends before Prefect is even imported.

    Raises:
        PrefloopError: nothing could be started: wrong parameters, hand-edited outputs, another live run.
    """
    started = time.monotonic()
    settings.apply(root)
    with supervise(root, new_pipeline_id(), terminal.say) as supervisor:
        supervisor.warm = find_warm(root)
        try:
            return _execute(root, request, terminal, supervisor, started)
        except Stopped:  # before a stage was started
            return Ended(Plan(()), signal_number=supervisor.signal_number)


def _execute(
    root: Path, request: Request, terminal: Terminal, supervisor: Supervisor, started: float
) -> Ended:
    params = load_params(root / "params.yaml")
    import_text_sources(supervisor, params.ingest.text, terminal.line)
    repo = open_repo(root)
    placement = decide(root, repo, request.pool)
    if placement.pools:
        open_exchange(root)  # tells DVC of the workers' remote, which may have what is not here
        repo = open_repo(root)
    pools = Pools(supervisor, placement.resources)
    prepare(supervisor, repo, placement, pools.environment, terminal.line)
    plan = make_plan(repo, request.targets, force=request.force, interrupted=unfinished(root))
    settle(root, (stage.name for stage in plan.stages if stage.action is Action.SKIP))
    plan = placed(plan, placement, root)
    room = Room() if plan.nothing_to_do else room_here()  # it asks the GPUs' driver
    refuse_what_has_no_room(plan.stages, room)
    _deal_with_edited(root, plan, request.force, terminal)
    steps: dict[str, Callable[[], str]] = {}
    if promotion_due(root, plan):
        steps["promote"] = lambda: promote(supervisor, terminal.line)
    if plan.nothing_to_do and not steps:
        deliver_late(supervisor, terminal.line)
        return Ended(plan, _skipped(plan), seconds=time.monotonic() - started)
    for line in plan_lines(plan, skipped=False):
        terminal.say(line)
    pools.open(plan.stages)
    work = {stage.name for stage in plan.stages if stage.action is not Action.SKIP and not stage.place.pool}
    commands = [str(stage.cmd) for stage in pipeline_stages(repo) if stage.name in work]
    with (
        prefect_api(supervisor) as ready,
        warm_starts(supervisor, commands),
        tracked_pipeline(supervisor.pipeline) as tracked,
    ):
        supervisor.variables |= tracked.variables
        elsewhere = {stage.name for stage in plan.stages if stage.place.pool}
        run_one = _runner(supervisor, terminal, pools, room, placement.resources)
        with head_start(plan, run_one, supervisor.end_all, elsewhere=elsewhere) as run_one:
            import flows.pipeline  # noqa: F401  (Prefect's import takes as long as its server's start)

            ready()
            alone = taking_every_core(root, {stage.name for stage in plan.stages} - elsewhere)
            ended = _run(supervisor, request, plan, steps, terminal, started, run_one, alone, room)
        tracked.link_skipped(stage for stage, outcome in ended.outcomes.items() if outcome != RAN)
        tracked.status = "FINISHED" if not ended.exit_code else "KILLED" if ended.stopped else "FAILED"
        return ended


def _runner(
    supervisor: Supervisor, terminal: Terminal, pools: Pools, room: Room, resources: ResourcesConfig
) -> RunOne:
    """What runs one stage, here or elsewhere, again where the infrastructure failed, and says so."""

    def stopped() -> bool:
        return supervisor.signal_number is not None

    def once(stage: StagePlan) -> StageResult:
        if stage.place.pool:
            return pools.run(stage, terminal.line)
        forced = any(reason.kind == "forced" for reason in stage.reasons)
        with own_gpus(
            stage.place.gpus, room.gpus, stopped=stopped, say=partial(terminal.line, stage.name)
        ) as variables:
            return run_here(supervisor, stage, terminal.line, force=forced, extra=variables)

    def run_one(stage: StagePlan) -> StageResult:
        result, faults = persist(
            stage.name,
            partial(once, stage),
            Patience(resources.retries, resources.retry_seconds),
            elsewhere=bool(stage.place.pool),
            stopped=stopped,
            say=terminal.say,
        )
        result = replace(result, faults=faults)
        terminal.done(stage.name)
        if result.outcome is not Outcome.SKIPPED:
            terminal.say(f"{stage.name}  {result.outcome.name.lower()} in {result.seconds:.0f} s")
        return result

    return run_one


def _run(
    supervisor: Supervisor,
    request: Request,
    plan: Plan,
    steps: dict[str, Callable[[], str]],
    terminal: Terminal,
    started: float,
    run_one: RunOne,
    alone: Collection[str],
    room: Room,
) -> Ended:
    from flows.pipeline import run_pipeline

    report = _in_thread(
        lambda: run_pipeline(
            plan, run_one, name=supervisor.pipeline, jobs=request.jobs, alone=alone, room=room, after=steps
        )
    )
    if report.trouble:
        terminal.say(report.trouble)
    return Ended(
        plan,
        {name: result.outcome.name.lower() for name, result in report.results.items()},
        report.failures,
        tuple(report.held_back),
        supervisor.signal_number,
        time.monotonic() - started,
    )


def _in_thread(work: Callable[[], T]) -> T:
    """Prefect replaces the handler of SIGTERM while a flow runs in the main thread; elsewhere ours stays."""
    with ThreadPoolExecutor(1, "pipeline") as executor:
        future = executor.submit(work)
        while not wait([future], timeout=POLL_SECONDS).done:
            continue
        return future.result()


def _deal_with_edited(root: Path, plan: Plan, force: bool, terminal: Terminal) -> None:
    if force:
        for path, target in rescue(root, plan.edited).items():
            terminal.say(f"{path} was changed by hand: moved to {target}")
    else:
        refuse(plan.edited)


def _skipped(plan: Plan) -> dict[str, str]:
    return {stage.name: Outcome.SKIPPED.name.lower() for stage in plan.stages}
