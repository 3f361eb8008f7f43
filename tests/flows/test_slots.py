"""Which stage gets a place first."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

import flows.slots
from flows.planning.model import Action, Place, StagePlan
from flows.room import Room
from flows.slots import Slots

# reward frees four stages at once; ppo has two more after it, the evaluations one.
STAGES = (
    StagePlan("sft", Action.SKIP, ()),
    StagePlan("reward", Action.RUN, ("sft",)),
    StagePlan("evaluate@base", Action.RUN, ("reward",), seconds=5.0),
    StagePlan("evaluate@sft", Action.RUN, ("reward",), seconds=50.0),
    StagePlan("ppo@ppo", Action.RUN, ("reward",)),
    StagePlan("evaluate@ppo", Action.RUN, ("ppo@ppo",)),
    StagePlan("report", Action.RUN, ("evaluate@base", "evaluate@sft", "evaluate@ppo")),
)


def run_all(slots: Slots, names: list[str], late: dict[str, float] | None = None) -> list[str]:
    """Each stage in a thread of its own that comes in this order; the order in which they start."""
    started: list[str] = []
    lock = threading.Lock()

    def work(name: str) -> None:
        time.sleep((late or {}).get(name, 0.0))
        with slots.place(name):
            with lock:
                started.append(name)
            time.sleep(0.02)
            slots.done(name)

    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a stage waits for ever"
    return started


def after_reward(jobs: int) -> Slots:
    slots = Slots(STAGES, jobs)
    slots.done("sft")
    slots.done("reward")
    return slots


def test_the_longest_way_goes_first_then_the_longest_stage() -> None:
    order = run_all(after_reward(1), ["evaluate@base", "evaluate@sft", "ppo@ppo"])
    assert order == ["ppo@ppo", "evaluate@sft", "evaluate@base"]


def test_a_long_stage_goes_before_a_longer_chain_of_short_ones() -> None:
    """`base` has fewer stages after it than the first of the others, and takes many times as long."""
    stages = (
        StagePlan("ingest", Action.RUN, ()),
        StagePlan("looks", Action.RUN, ("ingest",)),
        StagePlan("base", Action.RUN, ("ingest",)),
        StagePlan("export", Action.RUN, ("looks",)),
        StagePlan("sft", Action.RUN, ("base", "export")),
    )
    first = ["ingest", "looks", "base", "export", "sft"]
    assert run_all(Slots(stages, 1), first) == ["ingest", "base", "looks", "export", "sft"]
    known = tuple(replace(stage, seconds=1.0) for stage in stages)  # a past run with a base of one second
    assert run_all(Slots(known, 1), first)[1] == "looks"


CHECKED = (
    StagePlan("ingest", Action.RUN, ()),
    StagePlan("base", Action.RUN, ("ingest",), seconds=1000.0),
    StagePlan("validate@held_out", Action.RUN, ("ingest",), seconds=1.0),
    StagePlan("validate-leaks", Action.RUN, ("validate@held_out",), seconds=1.0),
    StagePlan("sft", Action.RUN, ("base", "validate-leaks")),
    StagePlan("judge", Action.RUN, ("ingest",), seconds=1.0),
)


def test_what_validates_data_goes_before_hours_of_training() -> None:
    order = run_all(Slots(CHECKED, 1), [stage.name for stage in CHECKED])
    assert order == ["ingest", "validate@held_out", "validate-leaks", "base", "sft", "judge"]


def test_a_stage_that_takes_every_core_runs_alone() -> None:
    slots = Slots(CHECKED, 2, alone={"base", "sft"})
    running, together, lock = set[str](), list[set[str]](), threading.Lock()

    def work(name: str) -> None:
        with slots.place(name):
            with lock:
                running.add(name)
                together.append(set(running))
            time.sleep(0.05)
            with lock:
                running.remove(name)
            slots.done(name)

    threads = [threading.Thread(target=work, args=(stage.name,), daemon=True) for stage in CHECKED]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a stage waits for ever"
    assert {"base"} in together
    assert {"sft"} in together
    assert all(group.isdisjoint({"base", "sft"}) for group in together if len(group) > 1)
    assert any(len(group) == 2 for group in together)  # the judge ran beside a validation


def test_a_place_is_kept_for_a_stage_that_is_still_coming() -> None:
    order = run_all(after_reward(1), ["evaluate@base", "evaluate@sft", "ppo@ppo"], late={"ppo@ppo": 0.3})
    assert order == ["ppo@ppo", "evaluate@sft", "evaluate@base"]


def test_a_second_place_is_not_kept_empty_for_one_stage() -> None:
    order = run_all(after_reward(2), ["evaluate@base", "evaluate@sft", "ppo@ppo"], late={"ppo@ppo": 0.3})
    assert order == ["evaluate@sft", "evaluate@base", "ppo@ppo"]


def test_a_stage_that_never_comes_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.slots, "COURTESY_SECONDS", 0.2)
    assert run_all(after_reward(1), ["evaluate@base", "evaluate@sft"]) == ["evaluate@sft", "evaluate@base"]


def test_no_more_stages_at_once_than_places_and_one_that_fails_gives_its_place_back() -> None:
    slots = after_reward(1)
    with pytest.raises(RuntimeError, match="failed"), slots.place("ppo@ppo"):
        raise RuntimeError("failed")
    running, most = 0, 0

    def work(name: str) -> None:
        nonlocal running, most
        with slots.place(name):
            running += 1
            most = max(most, running)
            time.sleep(0.05)
            running -= 1

    threads = [threading.Thread(target=work, args=(name,)) for name in ("evaluate@base", "evaluate@sft")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == 1


def four(*places: Place) -> tuple[StagePlan, ...]:
    """Stages that could start at once, the first of which matters most."""
    seconds = (40.0, 30.0, 20.0, 10.0)
    return tuple(
        StagePlan(name, Action.RUN, (), seconds=took, place=place)
        for name, took, place in zip("abcd", seconds, places, strict=False)
    )


def starts(slots: Slots, names: str) -> dict[str, bool]:
    """Which of these would start now; they have all come for their places."""
    slots._came.update(names)
    return {name: slots._may_start(name) for name in names}


def test_stages_that_ask_for_gpus_share_what_there_is() -> None:
    one = Place(gpus=1)
    slots = Slots(four(one, one, one), 3, room=Room(("0", "1")))
    assert starts(slots, "abc") == {"a": True, "b": True, "c": False}
    with slots.place("a"):
        assert starts(slots, "bc") == {"b": True, "c": False}
        with slots.place("b"):
            assert starts(slots, "c") == {"c": False}
    assert starts(slots, "c") == {"c": True}


def test_none_passes_a_stage_that_waits_for_more_gpus_but_one_that_asks_for_none() -> None:
    slots = Slots(four(Place(gpus=1), Place(gpus=2), Place(gpus=1), Place()), 4, room=Room(("0", "1")))
    with slots.place("a"):
        assert starts(slots, "bcd") == {"b": False, "c": False, "d": True}
    assert starts(slots, "bcd") == {"b": True, "c": False, "d": True}


def test_memory_is_shared_as_gpus_are_and_what_is_unknown_stops_nobody() -> None:
    places = (Place(memory=10), Place(memory=8), Place(memory=6))
    slots = Slots(four(*places), 3, room=Room(memory=16))
    assert starts(slots, "abc") == {"a": True, "b": False, "c": False}
    assert starts(Slots(four(*places), 3, room=Room(memory=0)), "abc") == {"a": True, "b": True, "c": True}


def test_stages_on_a_pool_take_no_place_here() -> None:
    away = Place("gpu", gpus=8)
    slots = Slots(four(away, away, Place(), Place()), 1, alone={"c"}, room=Room())
    with slots.place("a"), slots.place("b"):
        assert starts(slots, "cd") == {"c": True, "d": False}
        with slots.place("c"):
            assert starts(slots, "d") == {"d": False}
