"""One of several processes that share trainings: `python -m tests.training.ranked FOLDER RANK COUNT`.

FOLDER/jobs.json lists the trainings, and says how the processes are joined; what each training gave is
written to FOLDER/JOB-RANK.pt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers.utils import logging

from prefloop.config.training import TrainingConfig
from prefloop.errors import ConfigError, StopRequested, TrainingError
from prefloop.models.forward import token_logprobs
from prefloop.rollout.sampling import Sampler
from prefloop.training.distribution import joined, meeting, ranks
from prefloop.training.lockstep import backward
from prefloop.training.optimisation import Optimisation
from prefloop.training.sharding import gathered, is_shard, part_of, training
from tests import tiny
from tests.tiny import StopAfter, StopAtCall
from tests.training import trainings


class Fault(StopAfter):
    """Kills its own process after `steps` steps."""

    def stop_requested(self) -> bool:
        if super().stop_requested():
            os.kill(os.getpid(), signal.SIGKILL)
        return False


@contextmanager
def without_room(room: int) -> Iterator[None]:
    """Within it a pass of more than `room` rows runs out of memory, sampling included; 0 leaves it room."""

    def require(rows: int) -> None:
        if room and rows > room:
            raise MemoryError("out of memory, says the test")

    def limited(model: Any, input_ids: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        require(len(input_ids))
        return token_logprobs(model, input_ids, *rest, **options)

    whole = Sampler._batch

    def sampled(sampler: Sampler, prompts: list[list[int]], *given: Any) -> Any:
        require(len(prompts))
        return whole(sampler, prompts, *given)

    with (
        mock.patch("prefloop.training.language_model.token_logprobs", limited),
        mock.patch("prefloop.training.passes.token_logprobs", limited),
        mock.patch.object(Sampler, "_batch", sampled),
    ):
        yield


def gradients(rank: int) -> dict[str, Any]:
    """Sums of gradients that both processes have, one has, and none has; and rank 0's weights in both."""
    parameters = [nn.Parameter(torch.full((2,), float(rank), dtype=torch.float64)) for _ in range(3)]
    parameters.append(nn.Parameter(torch.zeros(3)))
    parameters[0].grad = torch.tensor([1.0, 2.0], dtype=torch.float64) * (rank + 1)
    if rank == 1:
        parameters[1].grad = torch.tensor([5.0, 7.0], dtype=torch.float64)
    parameters[3].grad = torch.full((3,), 10.0**rank)
    with mock.patch("prefloop.training.distribution.BUCKET_ELEMENTS", 3):  # more buckets than one
        ranks().sum_gradients(parameters)
    ranks().copy_from_main(parameters)
    return {"gradients": [p.grad for p in parameters], "weights": [p.detach() for p in parameters]}


def sizes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Of each parameter how many numbers this process holds, and how many there are."""
    return {
        name: (part_of(p).numel() if is_shard(p) else p.numel(), p.numel())
        for name, p in module.named_parameters()
    }


def shards(rank: int) -> dict[str, Any]:
    """What this process holds of a model before, in and after a training of one step."""
    model = tiny.model(tiny.tokenizer(), layers=2)
    found: dict[str, Any] = {"before": trainings.weights(model)}
    optimisation = Optimisation(model, TrainingConfig(max_grad_norm=0.01), 1)
    found["sharded"] = sizes(model)
    with training(model):
        with gathered(model):
            found["gathered"] = sizes(model)
            found["read"] = trainings.weights(model)
        ids = torch.tensor([[3, 4, 5, 6]])

        def own() -> None:
            if rank == 0:
                logprobs, _ = token_logprobs(model, ids, ids > 0, ids > 0)
                backward(-logprobs.sum())

        ranks().together(own)
        held = [p.grad for p in model.parameters() if p.grad is not None and is_shard(p)]
        found["gradients"] = sum(part_of(gradient).numel() for gradient in held)
        found["norm"], _ = optimisation.step(0)
        state = optimisation.optimiser.state.values()
        found["moments"] = sum(one["exp_avg"].numel() + one["exp_avg_sq"].numel() for one in state)
        found["saved"] = [tuple(one["exp_avg"].shape) for one in optimisation.state_dict()["state"].values()]
    try:
        Optimisation(model, TrainingConfig(optimizer="muon"), 1)
    except ConfigError as error:
        found["muon"] = str(error)
    found["kinds"] = sorted({type(part).__name__ for part in model.modules()})
    found["after"] = trainings.weights(model)
    model.base_model.layers = nn.ModuleList([nn.Identity()])  # as in a model whose blocks are not known
    try:
        Optimisation(model, TrainingConfig(), 1)
    except ConfigError as error:
        found["refused"] = str(error)
    return found


def perform(job: dict[str, Any], folder: Path, rank: int) -> dict[str, Any]:
    """Curve and final weights of one training, or why it ended before."""
    if job["training"] in ("gradients", "shards"):
        return {"gradients": gradients, "shards": shards}[job["training"]](rank)
    recorder = StopAfter(job.get("stop", 0))
    if "stop_at_call" in job:
        recorder = StopAtCall(job["stop_at_call"])
    if job.get("fails") == rank:
        recorder = Fault(2)
    room = job.get("room", 0) if rank == 1 else 0
    try:
        with without_room(room):
            weights = trainings.perform(job, place(job, folder, rank), recorder)
    except (StopRequested, TrainingError) as error:
        return {"rows": recorder.rows, "error": f"{type(error).__name__}: {error}"}
    return {"rows": recorder.rows, "weights": weights, "resumed_at": recorder.resumed_at}


def place(job: dict[str, Any], folder: Path, rank: int) -> Path:
    """The job's scratch folder, beside which each process has a trunk for reward models of its own."""
    return folder / job["name"] / f"rank-{rank}" / "scratch"


def prepare(job: dict[str, Any], folder: Path, rank: int) -> None:
    """Makes those folders: in a group of processes transformers lets rank 0 alone save a model."""
    shared = folder / job["name"] / "scratch"
    shared.mkdir(parents=True, exist_ok=True)
    scratch = place(job, folder, rank)
    tiny.saved(scratch.parent / "trunk-16")
    scratch.symlink_to(shared)


def main() -> None:
    """Performs all jobs in one group of processes."""
    folder, rank, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    listed = json.loads((folder / "jobs.json").read_text())
    jobs = listed["jobs"]
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for job in jobs:
        prepare(job, folder, rank)
    store = meeting(folder / "meeting", count)
    with joined(rank, count, store, timeout_seconds=120, **listed["joined"]):
        for job in jobs:
            torch.save(perform(job, folder, rank), folder / f"{job['name']}-{rank}.pt")


if __name__ == "__main__":
    main()
