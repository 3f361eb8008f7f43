"""Where a method that samples runs out of memory, it goes on with less at once, to the same end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prefloop.config.rollout import SamplingConfig
from prefloop.errors import StopRequested, TrainingError
from prefloop.models.reward_model import RewardModel
from prefloop.rewards.sources import MissingEnd, RewardSum
from prefloop.rollout.sampling import Sampler
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.looks import Looks
from prefloop.training.memory import Limit
from prefloop.training.passes import Passes
from prefloop.training.retrying import fitted
from tests import tiny
from tests.tiny import StopAfter, StopAtCall
from tests.training.trainings import (
    ON_POLICY,
    PROMPTS,
    SMOOTH,
    TRAININGS,
    Weights,
    group_trainer,
    ppo_trainer,
    rejection_trainer,
    weights,
)

SMALL: dict[str, Any] = {"steps": 2, "batch_size": 8, **SMOOTH}


class Room:
    """Says how often a pass of more than `rows` ran out of memory."""

    def __init__(self, rows: int) -> None:
        self.rows, self.failures = rows, 0

    def take(self, rows: int) -> None:
        if rows > self.rows:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@contextmanager
def short_of(what: str, rows: int) -> Iterator[Room]:
    """Within it passes of more than `rows` run out of memory: "updates" (with a gradient), "logprobs" (with
    none), "sampling" or "scoring"."""
    room = Room(rows)
    places: dict[str, tuple[type, str, Callable[..., int]]] = {
        "updates": (
            nn.Module,
            "__call__",
            lambda module, *args, **given: tiny.sequences_in(given) * torch.is_grad_enabled(),
        ),
        "logprobs": (
            Passes,
            "logprobs",
            lambda passes, model, batch, **given: len(batch.input_ids) * (not torch.is_grad_enabled()),
        ),
        "sampling": (Sampler, "_batch", lambda sampler, prompts, noise, decoder: len(prompts)),
        "scoring": (RewardModel, "raw", lambda model, prompts, completions, batch_size: len(prompts)),
    }
    holder, name, count = places[what]
    whole = getattr(holder, name)

    def limited(*args: Any, **given: Any) -> Any:
        room.take(count(*args, **given))
        return whole(*args, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, limited)
        yield room


def assert_same(found: Weights, expected: Weights, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0)


def assert_same_curve(
    found: list[dict[str, float]], expected: list[dict[str, float]], **reduced: int
) -> None:
    for row, against in zip(found, expected, strict=True):
        assert {name: row[name] for name in reduced} == reduced
        rest = {name: value for name, value in row.items() if name not in reduced}
        assert rest == pytest.approx(against, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ON_POLICY)
def test_an_update_that_does_not_fit_is_taken_again_whole(name: str, tmp_path: Path) -> None:
    recorder, expected = StopAfter(), StopAfter()
    whole = TRAININGS[name](tmp_path / "whole", expected, **SMALL)
    with short_of("updates", 2) as room:
        found = TRAININGS[name](tmp_path / "short", recorder, **SMALL)
    assert room.failures
    fitting = 1 if name == "online_dpo" else 2  # a unit is a pair there
    assert_same(found, whole)
    assert_same_curve(recorder.rows, expected.rows, micro_batch_size=fitting)
    line = f"out of memory at step 1: goes on with a micro-batch of {fitting}, exempt from byte identity"
    assert recorder.lines == [line]
    assert expected.lines == []


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_gradients_of_policy_and_critic_are_not_counted_twice(critic: str, tmp_path: Path) -> None:
    """The second of an update's passes fails, after the first was fed back."""
    changes = {**SMALL, "critic": critic, "ptx_coef": 0.5}
    calls = []
    whole = Passes.logprobs

    def failing(passes: Passes, *args: Any, **given: Any) -> Any:
        if torch.is_grad_enabled():
            calls.append(len(args[1].input_ids))
            if len(calls) == 2:
                raise MemoryError
        return whole(passes, *args, **given)

    expected = TRAININGS["ppo"](tmp_path / "whole", StopAfter(), **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passes, "logprobs", failing)
        recorder = StopAfter()
        found = TRAININGS["ppo"](tmp_path / "short", recorder, micro_batch_size=4, **changes)
    assert calls[:3] == [4, 4, 2]
    assert recorder.rows[0]["micro_batch_size"] == 2
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("what", "figure", "said"),
    [
        ("logprobs", "micro_batch_size", "a micro-batch of 2"),
        ("sampling", "sampled_at_once", "2 completions sampled at once"),
        ("scoring", "scored_at_once", "2 completions scored at once"),
    ],
)
@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_what_a_step_does_without_gradient_goes_on_with_less(
    method: str, what: str, figure: str, said: str, tmp_path: Path
) -> None:
    def trainer(folder: str) -> Any:
        make = ppo_trainer if method == "ppo" else lambda *a, **c: group_trainer("grpo", *a, **c)
        return make(tmp_path / folder, **SMALL)

    plain, short = trainer("whole"), trainer("short")
    expected, recorder = StopAfter(), StopAfter()
    assert plain.train(Checkpoints(tmp_path / "a", 1e9), expected) == {}
    with short_of(what, 3) as room:
        outcome = short.train(Checkpoints(tmp_path / "b", 1e9), recorder)
    assert room.failures == 2  # 8 and 4 at once; then it is known
    assert outcome == {"out_of_memory": {figure: 2}}
    assert recorder.lines == [f"out of memory at step 1: goes on with {said}, exempt from byte identity"]
    assert_same_curve(recorder.rows, expected.rows, **{figure: 2})
    assert_same(weights(short.policy), weights(plain.policy))
    # The completions themselves are the same, those that the selection looks at, too.
    assert [r["completion"] for r in short.selection.looks] == [
        r["completion"] for r in plain.selection.looks
    ]


@pytest.mark.parametrize(
    ("what", "message", "remedy"),
    [
        ("updates", "a single example a forward pass", "gradient_checkpointing"),
        ("logprobs", "a single example a forward pass", "lora"),
        ("sampling", "a single completion sampled at once", "max_new_tokens"),
        ("scoring", "a single completion scored at once", "smaller reward model"),
    ],
)
def test_what_does_not_fit_alone_is_an_error_with_remedies(
    what: str, message: str, remedy: str, tmp_path: Path
) -> None:
    trainer = group_trainer("grpo", tmp_path / "grpo", **SMALL)
    with (
        short_of(what, 0),
        pytest.raises(TrainingError, match=f"grpo: memory runs out with {message}") as caught,
    ):
        trainer.train(Checkpoints(tmp_path / "c", 1e9), StopAfter())
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("what", ["updates", "sampling", "scoring"])
def test_a_resumed_training_keeps_the_sizes_that_fitted(what: str, tmp_path: Path) -> None:
    changes = {"steps": 2, "inner_epochs": 2, "minibatches": 2}
    with short_of(what, 3):
        whole = TRAININGS["ppo"](tmp_path / "whole", expected := StopAfter(), **changes)
    with short_of(what, 3) as room, pytest.raises(StopRequested):
        # It is asked before each update: two of four lie behind it.
        TRAININGS["ppo"](tmp_path / "cut", first := StopAtCall(3), **changes)
    assert room.failures
    with short_of(what, 3) as room:
        found = TRAININGS["ppo"](tmp_path / "cut", second := StopAfter(), **changes)
    assert room.failures == 0
    assert first.lines == expected.lines
    assert second.lines == []
    assert second.rows == expected.rows
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_an_optimiser_that_does_not_fit_is_not_tried_again(tmp_path: Path) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", full)
        with pytest.raises(TrainingError, match="ppo: memory runs out for the optimiser's state"):
            TRAININGS["ppo"](tmp_path / "ppo", StopAfter(), **SMALL)


@pytest.mark.parametrize(("what", "figure"), [("sampling", "sampled_at_once"), ("scoring", "scored_at_once")])
def test_rejection_samples_and_scores_less_at_once(what: str, figure: str, tmp_path: Path) -> None:
    plain, short = rejection_trainer(tmp_path / "whole"), rejection_trainer(tmp_path / "short")
    expected, recorder = StopAfter(), StopAfter()
    assert plain.train(Checkpoints(tmp_path / "a", 1e9), expected) == {}
    with short_of(what, 20):
        outcome = short.train(Checkpoints(tmp_path / "b", 1e9), recorder)
    assert outcome == {"out_of_memory": {figure: 18}}  # of 24 prompts' 3 completions each, 72, 36, 18
    assert recorder.lines[0].startswith("out of memory at step 1: goes on with 18 completions")
    assert_same_curve(recorder.rows, expected.rows, **{figure: 18})
    assert_same(weights(short.policy), weights(plain.policy), 2e-4)


@pytest.mark.parametrize(
    ("what", "figure"), [("logprobs", "micro_batch_size"), ("sampling", "sampled_at_once")]
)
def test_a_look_takes_fewer_answers_at_once(what: str, figure: str) -> None:
    tokens = tiny.tokenizer()
    looks = [
        Looks(tiny.model(tokens), tokens, PROMPTS[:5], SamplingConfig(max_new_tokens=5), 2, seed=0)
        for _ in range(3)
    ]
    looks[0].look(1)
    with short_of(what, 2) as room:
        figures = looks[1].look(1)
        looks[2].load_state_dict(looks[1].state_dict())
        failures = room.failures
        looks[2].look(1)
    assert figures[f"look/{figure}"] == 2
    assert 0 < failures == room.failures
    assert [row["completion"] for row in looks[1].rows] == [row["completion"] for row in looks[0].rows]
    assert looks[2].rows[5:] == looks[1].rows


def test_a_reward_by_rule_sees_slices_of_all_it_is_given() -> None:
    ended = [True, False, True, False, False]
    rewards = RewardSum({"end": (2.0, MissingEnd())})
    whole, parts = rewards.score(["p"] * 5, ["c"] * 5, ended)
    for size in (1, 2, 5, 9):
        total, own = rewards.score(["p"] * 5, ["c"] * 5, ended, batch_size=size)
        assert torch.equal(total, whole)
        assert torch.equal(own["end"], parts["end"])
    assert rewards.score([], [], [])[0].shape == (0,)


def test_halving_starts_from_what_a_pass_held_and_other_errors_pass() -> None:
    tried: list[int] = []
    undone: list[int] = []
    limit = Limit("test", "size", "{}", "thing", "remedy", 64)

    def compute() -> int:
        tried.append(limit.size)
        if limit.size > 3:
            raise MemoryError
        return limit.size

    assert fitted(compute, limit, 10, lambda: undone.append(limit.size)) == [2]
    # A pass of 10 held 10 of the 64 it might have.
    assert tried == [64, 5, 2]
    assert undone == [64, 5]

    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fitted(broken, limit, 10)
    assert limit.size == 2
