"""Two processes that share the weights they train, too, take the steps of one that has them whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prefloop.config.training import TrainingConfig
from prefloop.models.forward import token_logprobs
from prefloop.training.optimisation import Optimisation
from prefloop.training.sharding import gathered
from tests import tiny
from tests.training import trainings
from tests.training.pairs import (
    assert_one_goes_on,
    assert_same_weights,
    assert_steps_of_one,
    assert_two_went_on,
    perform,
    result,
)

pytestmark = pytest.mark.slow

# 18 rows in steps of 7: two processes get 4 and 3 of them, and 2 each of the last 4; in passes of one row the
# second then makes fewer.
ODD = {"batch_size": 7, "micro_batch_size": 1, "epochs": 1}
LORA = {"rank": 2, "alpha": 4.0}
SHORT = {"steps": 2}
JOBS: list[dict[str, Any]] = [
    {"name": "shards", "training": "shards"},
    {"name": "sft", "training": "sft", "changes": ODD},
    {"name": "recomputed", "training": "sft_packed", "changes": {**ODD, "gradient_checkpointing": True}},
    {"name": "adapter", "training": "sft", "changes": {"batch_size": 7, "epochs": 1, "lora": LORA}},
    {"name": "reward", "training": "reward", "changes": ODD},
    {"name": "dpo", "training": "dpo", "changes": ODD},
    {"name": "dpo-trees", "training": "dpo", "changes": {**ODD, "share_prompt": "on"}},
    {"name": "kto", "training": "kto", "changes": {"batch_size": 7, "epochs": 1}},
    {"name": "rejection", "training": "rejection", "changes": {"batch_size": 7, "rounds": 2}},
    {
        "name": "ppo",
        "training": "ppo",
        "changes": {**SHORT, "batch_size": 6, "micro_batch_size": 1, "ptx_coef": 0.3},
    },
    {"name": "ppo-shared", "training": "ppo_shared", "changes": SHORT},
    {"name": "grpo", "training": "grpo", "changes": SHORT},
    {"name": "grpo-adapter", "training": "grpo", "changes": {**SHORT, "lora": LORA}},
    # The second process has nothing to do: no row of a step, no prompt to sample.
    {"name": "idle-sft", "training": "sft", "changes": {"batch_size": 1, "steps": 2}},
    {"name": "idle-grpo", "training": "grpo", "changes": {"batch_size": 4, "steps": 2}},
    {"name": "stopped-sft", "training": "sft", "stop": 3, "changes": {"every": 0.0}},
    {"name": "stopped-ppo", "training": "ppo", "stop_at_call": 7},
    *({"name": f"resumed-{name}", "training": name} for name in ("sft", "ppo")),
    {
        "name": "memory",
        "training": "sft",
        "changes": {"batch_size": 7},
        "room": 2,
    },  # ends the group
]
SHARED = [job["name"] for job in JOBS[1:15]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have performed the jobs."""
    folder = tmp_path_factory.mktemp("sharded")
    assert perform(folder, JOBS, sharded=True) == [0, 0]
    return folder


@pytest.mark.parametrize("name", SHARED)
def test_sharded_weights_take_the_steps_of_whole_ones(name: str, folder: Path, tmp_path: Path) -> None:
    job = next(job for job in JOBS if job["name"] == name)
    assert_steps_of_one(folder, job, tmp_path / "alone")


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_one_process_goes_on_from_a_checkpoint_of_shards(name: str, folder: Path, tmp_path: Path) -> None:
    assert_one_goes_on(folder, name, tmp_path / "alone")


# ppo was stopped in the middle of its second step.
@pytest.mark.parametrize(("name", "done"), [("sft", 3), ("ppo", 1)])
def test_shards_go_on_from_a_checkpoint_of_one_process(
    name: str, done: int, folder: Path, tmp_path: Path
) -> None:
    assert_two_went_on(folder, name, done, tmp_path / "alone")


def test_checkpoints_between_stops_are_made_by_all_and_written_by_one(folder: Path) -> None:
    scratch = folder / "stopped-sft" / "scratch"
    assert sorted(path.name for path in scratch.glob("checkpoint-*")) == [
        "checkpoint-00000002",
        "checkpoint-00000003",
    ]


def test_each_process_holds_a_part_of_weights_gradients_and_moments(folder: Path) -> None:
    first, second = result(folder, "shards"), result(folder, "shards", 1)
    divided = [name for name, (own, whole) in first["sharded"].items() if own < whole]
    matrices = [n for n, w in first["before"].items() if ".layers." in n and w.ndim > 1]
    assert divided == [name.removeprefix("0.") for name in matrices] != []
    of_blocks = sum(first["sharded"][name][1] for name in divided)
    for name in divided:
        assert first["sharded"][name][0] + second["sharded"][name][0] == first["sharded"][name][1]
    whole = sum(size for _, size in first["sharded"].values())
    for found in (first, second):
        own = sum(found["sharded"][name][0] for name in divided)
        assert own <= 0.6 * of_blocks
        assert found["gradients"] == own
        assert found["moments"] == 2 * (whole - of_blocks + own)
        assert all(own == size for own, size in found["gathered"].values())
        assert all(torch.equal(found["read"][name], weight) for name, weight in found["before"].items())
        assert not any("FSDP" in kind for kind in found["kinds"]), "the model is plain again"


def test_a_step_of_shards_is_the_step_of_the_whole_clipped_by_its_whole_norm(folder: Path) -> None:
    model = tiny.model(tiny.tokenizer(), layers=2)
    optimisation = Optimisation(model, TrainingConfig(max_grad_norm=0.01), 1)
    ids = torch.tensor([[3, 4, 5, 6]])
    (-token_logprobs(model, ids, ids > 0, ids > 0)[0].sum()).backward()
    norm, _ = optimisation.step(0)
    found = result(folder, "shards")
    assert norm > 0.1, "clipping counts"
    assert found["norm"] == pytest.approx(norm, rel=1e-5)
    assert_same_weights(found["after"], trainings.weights(model))
    whole = [tuple(one["exp_avg"].shape) for one in optimisation.state_dict()["state"].values()]
    assert found["saved"] == whole, "as one process would save it"


def test_a_model_without_known_blocks_is_refused(folder: Path) -> None:
    assert "no blocks to shard were found in a model of type llama" in result(folder, "shards")["refused"]
    assert "set compute.sharding to none" in result(folder, "shards")["refused"]


def test_muon_is_refused(folder: Path) -> None:
    assert "set compute.sharding to none, or optimizer to adamw" in result(folder, "shards")["muon"]


def test_a_process_without_memory_ends_the_training_of_both(folder: Path) -> None:
    first, second = result(folder, "memory"), result(folder, "memory", 1)
    assert second["error"].startswith(
        "TrainingError: memory ran out in process 1 of 2, which share the weights"
    )
    assert "set a lower micro_batch_size" in second["error"]
    assert first["error"].startswith("RankLost: another process of this training ended")


def test_without_a_group_nothing_is_sharded() -> None:
    model = tiny.model(tiny.tokenizer())
    before = list(model.parameters())
    assert Optimisation(model, TrainingConfig(), 1).replicated == before
    with gathered(model):
        assert list(model.parameters()) == before
