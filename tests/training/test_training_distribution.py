"""Two processes that share a training take the steps of one, and go on from each other's checkpoints.

All trainings of this file are made by one pair of gloo processes (tests/training/ranked.py), since importing
torch and transformers takes longer than all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.training.distribution import Ranks, added, ranks
from tests.training.pairs import (
    alone,
    assert_one_goes_on,
    assert_same_curve,
    assert_same_weights,
    assert_steps_of_one,
    assert_two_went_on,
    perform,
    result,
)

pytestmark = pytest.mark.slow

# 18 rows in steps of 7: two processes get 4 and 3 of them, and 2 each of the last 4.
ODD = {"batch_size": 7}
SHARED: dict[str, dict[str, Any]] = {
    "sft": ODD,
    "sft_packed": ODD,
    "sft_with_adapter": ODD,
    "reward": ODD,
    "dpo": {**ODD, "share_prompt": "on"},
    "dpo_with_adapter": ODD,
    "kto": ODD,
    "orpo": ODD,
    "rejection": ODD,
    "ppo": {"batch_size": 6, "ptx_coef": 0.3},
    "ppo_shared": {"inner_epochs": 2, "minibatches": 2},
    "grpo": {},
    "dapo": {},
    "reinforce": {},
    "online_dpo": {"batch_size": 3},
}
MUON = {"sft": ODD, "ppo": {"batch_size": 6}}
# The second process has nothing to do: no row of a step, no prompt to sample.
IDLE = {"sft": {"batch_size": 1, "steps": 3}, "grpo": {"batch_size": 4, "steps": 2}}
JOBS: list[dict[str, Any]] = [
    {"name": "gradients", "training": "gradients"},
    *({"name": name, "training": name, "changes": changes} for name, changes in SHARED.items()),
    *(
        {"name": f"muon-{name}", "training": name, "changes": {"optimizer": "muon", **changes}}
        for name, changes in MUON.items()
    ),
    *({"name": f"idle-{name}", "training": name, "changes": changes} for name, changes in IDLE.items()),
    {"name": "memory", "training": "sft", "changes": ODD, "room": 2},
    {"name": "memory-grpo", "training": "grpo", "room": 2},
    *({"name": f"stopped-{name}", "training": name, "stop": 3} for name in ("sft", "kto", "rejection")),
    {"name": "stopped-ppo", "training": "ppo", "stop_at_call": 7},
    *({"name": f"resumed-{name}", "training": name} for name in ("sft", "ppo")),
    {"name": "failed", "training": "dpo", "fails": 1},  # the last: it ends the group
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have performed the jobs."""
    folder = tmp_path_factory.mktemp("ranked")
    assert perform(folder, JOBS) == [0, -9]
    return folder


@pytest.mark.parametrize(
    "name", [*SHARED, *(f"muon-{name}" for name in MUON), *(f"idle-{name}" for name in IDLE)]
)
def test_two_processes_take_the_steps_of_one_and_hold_the_same_bits(
    name: str, folder: Path, tmp_path: Path
) -> None:
    job = next(job for job in JOBS if job["name"] == name)
    assert_steps_of_one(folder, job, tmp_path / "alone")


@pytest.mark.parametrize("name", ["sft", "kto", "rejection", "ppo"])
def test_one_process_goes_on_from_a_checkpoint_of_two(name: str, folder: Path, tmp_path: Path) -> None:
    assert_one_goes_on(folder, name, tmp_path / "alone")


# ppo was stopped in the middle of its second step.
@pytest.mark.parametrize(("name", "done"), [("sft", 3), ("ppo", 1)])
def test_two_processes_go_on_from_a_checkpoint_of_one(
    name: str, done: int, folder: Path, tmp_path: Path
) -> None:
    assert_two_went_on(folder, name, done, tmp_path / "alone")


def test_rank_0_alone_writes_checkpoints(folder: Path) -> None:
    assert [path.name for path in (folder / "stopped-sft" / "scratch").iterdir()] == ["checkpoint-00000003"]


def test_a_process_without_memory_makes_both_take_smaller_passes(folder: Path, tmp_path: Path) -> None:
    expected = alone({"training": "sft", "changes": ODD}, tmp_path / "alone")
    rows = [dict(row) for row in result(folder, "memory")["rows"]]
    assert {row.pop("micro_batch_size") for row in rows} == {1.0}
    assert_same_curve(rows, expected["rows"])
    assert_same_weights(result(folder, "memory")["weights"], expected["weights"])


def test_a_process_without_memory_makes_both_sample_and_learn_from_less_at_once(
    folder: Path, tmp_path: Path
) -> None:
    expected = alone({"training": "grpo"}, tmp_path / "alone")
    for rank in (0, 1):
        rows = [dict(row) for row in result(folder, "memory-grpo", rank)["rows"]]
        for figure in ("micro_batch_size", "sampled_at_once"):
            assert {row.pop(figure) for row in rows} == {2.0}
        assert_same_curve(rows, expected["rows"])
        assert_same_weights(result(folder, "memory-grpo", rank)["weights"], expected["weights"])


def test_a_process_that_dies_ends_the_training_of_the_other(folder: Path) -> None:
    found = result(folder, "failed")
    assert found["error"].startswith("RankLost: another process of this training ended")
    assert [row["step"] for row in found["rows"]] == [1, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_are_summed_and_weights_are_rank_0s(rank: int, folder: Path) -> None:
    found = result(folder, "gradients", rank)
    one, other, none, single = found["gradients"]
    assert one.tolist() == [3.0, 6.0]
    assert other.tolist() == [5.0, 7.0]
    assert none is None, "the optimiser must not move what nothing was learned about"
    assert single.tolist() == [11.0, 11.0, 11.0]
    assert all(bool((weight == 0).all()) for weight in found["weights"])


@given(st.lists(st.integers(), max_size=20), st.integers(1, 6))
def test_shares_make_up_the_whole(items: list[int], count: int) -> None:
    shares = [Ranks(rank, count).share(items) for rank in range(count)]
    assert Ranks(0, count).woven(shares) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_without_a_group_there_is_one_process() -> None:
    assert ranks() == Ranks(0, 1)
    assert ranks().gather("own") == ["own"]
    assert ranks().from_main(3) == 3
    parameter = torch.nn.Parameter(torch.ones(2))
    ranks().sum_gradients([parameter])
    assert parameter.grad is None


def test_figures_add_up_by_name() -> None:
    assert added([{"a": 1.0, "b": 2.0}, {}, {"b": 3.0, "c": 4.0}]) == {"a": 1.0, "b": 5.0, "c": 4.0}
