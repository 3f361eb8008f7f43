"""Two processes that share a training take the steps of one, and go on from each other's checkpoints.

All trainings of this file are made by one pair of gloo processes (tests/training/ranked.py), since importing
torch and transformers takes longer than all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.errors import StopRequested
from prefloop.training.distribution import Ranks, added, ranks
from tests.tiny import StopAfter, StopAtCall
from tests.training.trainings import TRAININGS, Weights

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
# 18 rows in steps of 7: two processes get 4 and 3 of them, and 2 each of the last 4.
ODD = {"batch_size": 7}
SHARED: dict[str, dict[str, Any]] = {
    "sft": ODD,
    "sft_packed": ODD,
    "sft_with_adapter": ODD,
    "reward": ODD,
    "dpo": ODD,
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
# The second process has nothing to do: no row of a step, no prompt to sample.
IDLE = {"sft": {"batch_size": 1, "steps": 3}, "grpo": {"batch_size": 4, "steps": 2}}
JOBS: list[dict[str, Any]] = [
    {"name": "gradients", "training": "gradients"},
    *({"name": name, "training": name, "changes": changes} for name, changes in SHARED.items()),
    *({"name": f"idle-{name}", "training": name, "changes": changes} for name, changes in IDLE.items()),
    {"name": "memory", "training": "sft", "changes": ODD, "room": 2},
    {"name": "memory-grpo", "training": "grpo", "room": 2},
    *({"name": f"stopped-{name}", "training": name, "stop": 3} for name in ("sft", "kto", "rejection")),
    {"name": "stopped-ppo", "training": "ppo", "stop_at_call": 7},
    *({"name": f"resumed-{name}", "training": name} for name in ("sft", "ppo")),
    {"name": "failed", "training": "dpo", "fails": 1},  # the last: it ends the group
]


def alone(job: dict[str, Any], scratch: Path, recorder: StopAfter | None = None) -> dict[str, Any]:
    """What one process makes of a job."""
    recorder = recorder or StopAfter()
    weights = TRAININGS[job["training"]](scratch, recorder, **job.get("changes", {}))
    return {"rows": recorder.rows, "weights": weights, "resumed_at": recorder.resumed_at}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have performed the jobs."""
    folder = tmp_path_factory.mktemp("ranked")
    (folder / "jobs.json").write_text(json.dumps(JOBS))
    for job in JOBS:
        if job["name"].startswith("resumed"):
            recorder = StopAtCall(7) if job["training"] == "ppo" else StopAfter(3)
            with pytest.raises(StopRequested):
                alone(job, folder / job["name"] / "scratch", recorder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.ranked", str(folder), str(rank), "2"],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in started:
        _, said = process.communicate(timeout=240)
        assert (folder / "resumed-ppo-0.pt").exists(), said
    assert [process.returncode for process in started] == [0, -9]
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> Callable[..., dict[str, Any]]:
    """What a process made of a job."""

    def read(name: str, rank: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(folder / f"{name}-{rank}.pt", weights_only=True)
        return found

    return read


def assert_same_curve(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert [row.keys() for row in one] == [row.keys() for row in other]
    for row, against in zip(one, other, strict=True):
        assert row == pytest.approx(against, rel=TOLERANCE, abs=TOLERANCE)


def assert_same_weights(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < TOLERANCE


@pytest.mark.parametrize("name", [*SHARED, *(f"idle-{name}" for name in IDLE)])
def test_two_processes_take_the_steps_of_one(
    name: str, result: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    job = next(job for job in JOBS if job["name"] == name)
    expected, shared = alone(job, tmp_path / "alone"), result(name)
    assert_same_curve(shared["rows"], expected["rows"])
    assert_same_weights(shared["weights"], expected["weights"])


@pytest.mark.parametrize("name", SHARED)
def test_both_processes_hold_the_same_bits_throughout(
    name: str, result: Callable[..., dict[str, Any]]
) -> None:
    first, second = result(name, 0), result(name, 1)
    assert first["rows"] == second["rows"]
    assert all(torch.equal(first["weights"][n], second["weights"][n]) for n in first["weights"])


@pytest.mark.parametrize("name", ["sft", "kto", "rejection", "ppo"])
def test_one_process_goes_on_from_a_checkpoint_of_two(
    name: str, result: Callable[..., dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    stopped = result(f"stopped-{name}")
    assert stopped["error"].startswith("StopRequested")
    assert result(f"stopped-{name}", 1)["error"] == stopped["error"]
    job = {"training": name}
    expected = alone(job, tmp_path / "alone")
    resumed = alone(job, folder / f"stopped-{name}" / "rank-0" / "scratch")
    assert resumed["resumed_at"] == len(stopped["rows"]) > 0
    assert_same_curve(stopped["rows"] + resumed["rows"], expected["rows"])
    assert_same_weights(resumed["weights"], expected["weights"])


# ppo was stopped in the middle of its second step.
@pytest.mark.parametrize(("name", "done"), [("sft", 3), ("ppo", 1)])
def test_two_processes_go_on_from_a_checkpoint_of_one(
    name: str, done: int, result: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    expected, resumed = alone({"training": name}, tmp_path / "alone"), result(f"resumed-{name}")
    assert resumed["resumed_at"] == done
    assert_same_curve(resumed["rows"], expected["rows"][done:])
    assert_same_weights(resumed["weights"], expected["weights"])


def test_rank_0_alone_writes_checkpoints(folder: Path) -> None:
    assert [path.name for path in (folder / "stopped-sft" / "scratch").iterdir()] == ["checkpoint-00000003"]


def test_a_process_without_memory_makes_both_take_smaller_passes(
    result: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    expected = alone({"training": "sft", "changes": ODD}, tmp_path / "alone")
    rows = [dict(row) for row in result("memory")["rows"]]
    assert {row.pop("micro_batch_size") for row in rows} == {1.0}
    assert_same_curve(rows, expected["rows"])
    assert_same_weights(result("memory")["weights"], expected["weights"])


def test_a_process_without_memory_makes_both_sample_and_learn_from_less_at_once(
    result: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    expected = alone({"training": "grpo"}, tmp_path / "alone")
    for rank in (0, 1):
        rows = [dict(row) for row in result("memory-grpo", rank)["rows"]]
        for figure in ("micro_batch_size", "sampled_at_once"):
            assert {row.pop(figure) for row in rows} == {2.0}
        assert_same_curve(rows, expected["rows"])
        assert_same_weights(result("memory-grpo", rank)["weights"], expected["weights"])


def test_a_process_that_dies_ends_the_training_of_the_other(result: Callable[..., dict[str, Any]]) -> None:
    found = result("failed")
    assert found["error"].startswith("RankLost: another process of this training ended")
    assert [row["step"] for row in found["rows"]] == [1, 2]


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_are_summed_and_weights_are_rank_0s(
    rank: int, result: Callable[..., dict[str, Any]]
) -> None:
    found = result("gradients", rank)
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
