"""The stage that begins while Prefect starts."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from flows.head_start import head_start
from flows.planning.model import Action, Plan, StagePlan
from flows.slots import first_of
from flows.stage_run import Outcome, StageResult
from prefloop.errors import PrefloopError

STAGES = (
    StagePlan("text", Action.SKIP, ()),
    StagePlan("ingest", Action.RUN, ("text",)),
    StagePlan("notes", Action.RUN, ("text",), seconds=0.1),
    StagePlan("base", Action.MAYBE, ("ingest",)),
    StagePlan("report", Action.MAYBE, ("base", "notes")),
)


def nothing() -> None:
    raise AssertionError("there is nothing to end")


def ran(stage: StagePlan) -> StageResult:
    return StageResult(stage.name, Outcome.RAN, 1.0)


def test_it_is_the_stage_that_would_get_the_first_place() -> None:
    first = first_of(STAGES)
    assert first is not None
    assert first.name == "ingest"
    assert first_of([replace(stage, action=Action.SKIP) for stage in STAGES]) is None
    unsure = [replace(stage, action=Action.MAYBE) if stage.name == "ingest" else stage for stage in STAGES]
    assert first_of(unsure) is None
    assert first_of(()) is None


def test_it_runs_once_at_once_and_is_waited_for_where_it_is_asked_for() -> None:
    begun, may_end, order = threading.Event(), threading.Event(), list[str]()

    def run_one(stage: StagePlan) -> StageResult:
        order.append(stage.name)
        if stage.name == "ingest":
            begun.set()
            assert may_end.wait(20)
        return ran(stage)

    with head_start(Plan(STAGES), run_one, nothing) as run:
        assert begun.wait(20)
        assert run(STAGES[2]) == ran(STAGES[2])
        may_end.set()
        assert run(STAGES[1]) == ran(STAGES[1])
    assert order == ["ingest", "notes"]


def test_its_failure_comes_where_it_is_asked_for() -> None:
    def run_one(stage: StagePlan) -> StageResult:
        raise PrefloopError(f"{stage.name} failed")

    with (
        head_start(Plan(STAGES), run_one, nothing) as run,
        pytest.raises(PrefloopError, match="ingest failed"),
    ):
        run(STAGES[1])


def test_without_prefect_it_is_ended() -> None:
    ended = threading.Event()

    def run_one(stage: StagePlan) -> StageResult:
        assert ended.wait(20)
        raise PrefloopError("ended")

    started = time.monotonic()
    with (
        pytest.raises(ConnectionError, match="no server"),
        head_start(Plan(STAGES), run_one, ended.set),
    ):
        raise ConnectionError("no server")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("elsewhere", [{"ingest"}, {"ingest", "base"}])
def test_a_stage_of_another_machine_waits_for_prefect(elsewhere: set[str]) -> None:
    with head_start(Plan(STAGES), ran, nothing, elsewhere=elsewhere) as run:
        assert run is ran
