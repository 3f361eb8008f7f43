"""The first stage begins while Prefect starts.

Its server and its import take seconds, in which one stage can already work. Prefect has that stage as a task
like any other, which waits for what was begun.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from flows.planning.model import Plan, StagePlan
from flows.slots import first_of
from flows.stage_run import StageResult

RunOne = Callable[[StagePlan], StageResult]


@contextmanager
def head_start(
    plan: Plan, run_one: RunOne, end_all: Callable[[], None], *, elsewhere: Collection[str] = ()
) -> Iterator[RunOne]:
    """Begins the stage that gets the first place, and waits for its end when the block is over.

    Args:
        run_one: runs a stage to its end.
        end_all: ends what runs; called when the block fails, so that the stage is not waited for.
        elsewhere: stages that do not run on this machine.

    Yields:
        What runs a stage, or waits for the one that was begun: its result and its errors come from there.
    """
    first = first_of(plan.stages)
    if first is None or first.name in elsewhere:
        yield run_one
        return
    with ThreadPoolExecutor(1, "head-start") as executor:
        begun = executor.submit(run_one, first)
        try:
            yield lambda stage: begun.result() if stage.name == first.name else run_one(stage)
        except BaseException:
            end_all()
            raise
