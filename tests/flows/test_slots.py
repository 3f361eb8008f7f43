"""Which stage gets a place first."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

import flows.slots
from flows.planning.model import Action, StagePlan
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
    """`base` has fewer stages after it than a validation, and takes many times as long."""
    stages = (
        StagePlan("validate@text", Action.RUN, ()),
        StagePlan("validate@prompts", Action.RUN, ("validate@text",)),
        StagePlan("base", Action.RUN, ("validate@text",)),
        StagePlan("validate-leaks", Action.RUN, ("validate@prompts",)),
        StagePlan("sft", Action.RUN, ("base", "validate-leaks")),
    )
    first = ["validate@text", "validate@prompts", "base", "validate-leaks", "sft"]
    assert run_all(Slots(stages, 1), first) == [
        "validate@text",
        "base",
        "validate@prompts",
        "validate-leaks",
        "sft",
    ]
    known = tuple(replace(stage, seconds=1.0) for stage in stages)  # a past run with a base of one second
    assert run_all(Slots(known, 1), first)[1] == "validate@prompts"


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
