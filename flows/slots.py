"""Places for stages at once: of those that could start, the one with the longest way to the end goes first.

When the reward model is done, PPO and three evaluations could start. Were PPO to wait for the evaluations,
the whole run would wait with it. Two kinds of stages are apart from that. What validates data goes before
all: it is short, and may spare hours of a training that its findings would stop. And a stage whose threads
take every core runs alone: threads that wait for one another lose more to a neighbour than it gains.

A stage that asks for GPUs or memory starts when so much is free. While one that matters more waits for them,
none behind it takes any; one that asks for nothing may pass. Stages on pools take no place here: how many run
there is for their workers to say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from flows.planning.model import Action, StagePlan
from flows.room import Room

COURTESY_SECONDS = 3.0
"""How long a place is kept for a stage that could start and whose thread has not come for it yet."""


TYPICAL_SECONDS = {"base": 80.0, "sft": 40.0, "reward": 120.0, "judge": 120.0, "evaluate": 20.0}
TRAINING_SECONDS = 90.0
"""What a stage counts that never ran here, of the help desk's sizes: their proportions matter alone."""


def _seconds(stage: StagePlan) -> float:
    if stage.action is Action.SKIP:
        return 0.0
    if stage.seconds is not None:
        return stage.seconds
    method, _, name = stage.name.partition("@")
    # Policies are trained by stages METHOD@NAME; data is validated by stages of that form, too.
    return TYPICAL_SECONDS.get(method, TRAINING_SECONDS if name and method != "validate" else 5.0)


def _validates(stage: str) -> bool:
    return stage.partition("@")[0] in ("validate", "validate-leaks")


def _order(stages: Sequence[StagePlan]) -> list[StagePlan]:
    """Stages, those that matter most to the end of the run first."""
    names = {stage.name for stage in stages}
    after = dict.fromkeys(names, 0.0)  # seconds from a stage's end to the end of the run, at least
    for stage in reversed(stages):
        for parent in names.intersection(stage.parents):
            after[parent] = max(after[parent], _seconds(stage) + after[stage.name])
    return sorted(
        stages, key=lambda stage: (not _validates(stage.name), -(_seconds(stage) + after[stage.name]))
    )


def first_of(stages: Sequence[StagePlan]) -> StagePlan | None:
    """The stage that gets the first place, where one is sure to run at once.

    Args:
        stages: every stage, parents first.
    """
    skipped = {stage.name for stage in stages if stage.action is Action.SKIP}
    waited_for = {stage.name for stage in stages} - skipped
    for stage in _order(stages):
        if stage.name in waited_for and waited_for.isdisjoint(stage.parents):
            return stage if stage.action is Action.RUN else None
    return None


class Slots:
    """Gives `jobs` places to the stages of a plan, in the order in which they matter to its end.

    A stage could start when all its parents are `done`. Among those, the one from whose beginning the way to
    the end is longest comes first, by what stages took in past runs; validations come before the others.

    Args:
        stages: every stage, parents first.
        jobs: stages at once (count).
        alone: stages that run while no other does.
        room: what they share; None asks nothing of it.
    """

    def __init__(
        self, stages: Sequence[StagePlan], jobs: int, alone: Collection[str] = (), room: Room | None = None
    ) -> None:
        names = {stage.name for stage in stages}
        self._parents = {stage.name: names.intersection(stage.parents) for stage in stages}
        self._rank = {stage.name: rank for rank, stage in enumerate(_order(stages))}
        self._jobs, self._alone, self._room = jobs, frozenset(alone), room
        self._places = {stage.name: stage.place for stage in stages}
        self._running: set[str] = set()
        self._came: set[str] = set()
        self._left: set[str] = set()  # no longer in line: running, or ended
        self._done: set[str] = set()
        self._ready_since: dict[str, float] = {}
        self._changed = threading.Condition()
        self._note_ready()

    @contextmanager
    def place(self, stage: str) -> Iterator[None]:
        """Holds a place while the block runs; waits for one until it is this stage's turn."""
        if self._places[stage].pool:
            with self._changed:
                self._left.add(stage)
            yield
            return
        with self._changed:
            self._came.add(stage)
            while not self._may_start(stage):
                self._changed.wait(timeout=COURTESY_SECONDS / 4)
            self._left.add(stage)
            self._running.add(stage)
        try:
            yield
        finally:
            with self._changed:
                self._running.discard(stage)
                self._changed.notify_all()

    def done(self, stage: str) -> None:
        """Says that a stage ended well, or was skipped: what reads its outputs could start."""
        with self._changed:
            self._left.add(stage)
            self._done.add(stage)
            self._note_ready()
            self._changed.notify_all()

    def _note_ready(self) -> None:
        for stage, parents in self._parents.items():
            if stage not in self._ready_since and parents <= self._done:
                self._ready_since[stage] = time.monotonic()

    def _may_start(self, stage: str) -> bool:
        now = time.monotonic()
        before = [
            other
            for other, since in self._ready_since.items()
            if other not in self._left
            and not self._places[other].pool
            and self._rank[other] < self._rank[stage]
            and (other in self._came or now - since < COURTESY_SECONDS)
        ]
        if stage in self._alone:
            return not self._running and not before
        if not self._alone.isdisjoint([*self._running, *before]):
            return False
        return self._fits(stage, sorted(before, key=self._rank.__getitem__))

    def _fits(self, stage: str, before: Sequence[str]) -> bool:
        """True when there is a place and room for a stage after those before it in line have had theirs."""
        places = self._jobs - len(self._running)
        if self._room is None:
            return len(before) < places
        gpus = len(self._room.gpus) - sum(self._places[other].gpus for other in self._running)
        memory = self._room.memory - sum(self._places[other].memory for other in self._running)
        for other in [*before, stage]:
            asks = self._places[other]
            fits = asks.gpus <= gpus and (asks.memory <= memory or not self._room.memory)
            if other == stage:
                return fits and places > 0
            if fits:
                places -= 1
            # What is there is kept for who waits for more of it.
            gpus = gpus - asks.gpus if asks.gpus <= gpus else 0
            memory = memory - asks.memory if asks.memory <= memory else 0
        return False
