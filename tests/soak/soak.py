"""A number of faults, one after another, each in a run of its own; what is printed and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

from tests.soak.checks import Expected, Struck, Tracking, expected, problems
from tests.soak.faults import FAULTS, Fault, Scene, TooLate, available, moment
from tests.soak.world import World

TRIES = 3
"""A moment that comes when the run is over is drawn again."""

Say = Callable[[str], None]


@dataclass
class Result:
    """What came of one fault.

    Attributes:
        how: "itself" or "one command".
        late: what it told MLflow was delivered by the run after it.
        problems: what does not hold afterwards.
        seconds: from the start of the run to its end, the one command included.
    """

    number: int
    pipeline: str
    fault: str
    moment: str = ""
    what: str = ""
    how: str = ""
    late: bool = False
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        late = ", metrics by the next run" if self.late else ""
        end = f"finished by {self.how}{late}" if self.well else "FAILED"
        lines = [
            f"{self.number:3}  {self.pipeline:5}  {self.what}  [{self.moment}]  {end}, {self.seconds:.0f} s"
        ]
        return "\n".join([*lines, *(f"       {problem}" for problem in self.problems)])


class Soak:
    """Faults in one world.

    Args:
        world: with nothing in it yet; `prepare` makes the references.
        seed: every choice follows from it and the fault's number.
    """

    def __init__(self, world: World, seed: int, say: Say) -> None:
        self._world, self._seed, self._say = world, seed, say
        self._want: dict[int, Expected] = {}
        self._changes = 0
        self._tracking: Tracking | None = None

    def prepare(self, *, changes: bool = True) -> None:
        """Undisturbed runs: the first one and, with `changes`, one of each result that these lead to."""
        world = self._world
        world.set(world.pipeline.first)
        self._remember(self._timed("the first run"))
        for _ in range(
            world.pipeline.variants if changes else 0
        ):  # the last one leads back to what the first run made
            self._change(Random(0))
            self._remember(self._timed("an undisturbed change"))
        self._tracking = Tracking(world)
        self._tracking.new_runs()

    def strike(self, number: int, fault: Fault) -> Result:
        """One fault, and what came of it."""
        result = Result(number, self._world.pipeline.name, fault.name)
        for attempt in range(TRIES):
            try:
                self._strike(result, fault, Random(f"{self._seed} {number} {attempt}"))
                return result
            except TooLate as late:
                result.problems = [f"came too late {attempt + 1} times: {late} had ended"]
                self._finish(result)
            except (AssertionError, TimeoutError, OSError) as error:
                result.problems.append(f"{type(error).__name__}: {error}")
                self._finish(result)
                return result
        return result

    def _strike(self, result: Result, fault: Fault, draw: Random) -> None:
        world = self._world
        assert self._tracking is not None
        self._change(draw)
        stage, steps = draw.choice(sorted(world.pipeline.trainers.items()))
        extra: Mapping[str, str] = fault.variables(world) if fault.variables else {}
        began = time.monotonic()
        run = world.start(drop=fault.drop, **extra)
        scene = Scene(world, draw, stage, draw.randint(1, steps - 1), run)
        result.moment = moment(scene, fault, self._want[self._variant].seconds)
        step, checkpoint = world.step(stage), world.checkpoint(stage)
        result.what = fault.strike(scene)
        code = world.wait(run) if scene.code is None else scene.code
        for step_after in scene.away:
            step_after()
        if fault.mend is not None:
            fault.mend(scene)
        result.how = "itself"
        if code:
            result.how = "one command"
            code = world.command()
        result.seconds = time.monotonic() - began
        result.problems = [f"the one command ended with exit code {code}"] if code else []
        if world.undelivered():  # a run waits for MLflow for half a minute; the next one goes on
            result.late = True
            if world.workers:  # and what a killed worker had told, its next stage delivers
                self._change(draw)
            code = world.command()
            result.problems += [f"the next run ended with exit code {code}"] if code else []
        seen = Struck(
            stage, step if fault.tracked and fault.when == "training" else -1, checkpoint, scene.cuts
        )
        result.problems += problems(world, self._want[self._variant], self._tracking, seen)

    def _finish(self, result: Result) -> None:
        """Brings the workspace to rest, whatever a fault that could not be judged left."""
        world = self._world
        world.restore()
        if world.processes():
            world.kill_all()
        if code := world.command():
            result.problems.append(f"and a run after it ended with exit code {code}")
        assert self._tracking is not None
        self._tracking.new_runs()

    @property
    def _variant(self) -> int:
        return self._changes % self._world.pipeline.variants

    def _change(self, draw: Random) -> None:
        world = self._world
        self._changes += 1
        if world.pipeline.restores:
            world.forget_run_cache()
        world.set(world.pipeline.change(self._changes, draw))

    def _remember(self, seconds: float) -> None:
        found = expected(self._world, seconds)
        before = self._want.get(self._variant, found)
        if (before.hashes, before.rows) != (found.hashes, found.rows):
            raise SystemExit(f"{self._world.pipeline.name}: two undisturbed runs differ")
        self._want[self._variant] = found

    def _timed(self, what: str) -> float:
        began = time.monotonic()
        if code := self._world.command():
            raise SystemExit(
                f"{self._world.pipeline.name}: {what} ended with exit code {code}; see {self._world.log}"
            )
        seconds = time.monotonic() - began
        self._say(f"     {self._world.pipeline.name:5}  {what}: {seconds:.0f} s")
        return seconds


def schedule(count: int, seed: int, has: frozenset[str], kinds: frozenset[str] = frozenset()) -> list[Fault]:
    """Which faults, in which order: every kind that can be had comes as often as any other, or once more.

    Args:
        kinds: names of those that are taken; empty takes all.
    """
    usable = [fault for fault in FAULTS if fault.needs <= has and (not kinds or fault.name in kinds)]
    draw, found = Random(f"{seed} schedule"), list[Fault]()
    while len(found) < count:
        turn = list(usable)
        draw.shuffle(turn)
        found += turn
    return found[:count]


def left_out(has: frozenset[str], kinds: frozenset[str] = frozenset()) -> Iterator[str]:
    """Kinds that are wanted and cannot be had here, each with what is missing."""
    for fault in FAULTS:
        if kinds and fault.name not in kinds:
            continue
        if missing := sorted(fault.needs - has):
            yield f"{fault.name}: {', '.join(MISSING[name] for name in missing)}"


MISSING = {
    "servers": "no servers were started",
    "mount": "no file system of its own could be mounted (needs root on Linux)",
    "clock": "no C compiler (cc), or not Linux",
    "workers": "all runs in the workspace",
    "warm": "stages start warm in the real pipeline alone",
}

__all__ = ["Result", "Soak", "available", "left_out", "schedule"]
