"""One training by several processes: which rows are whose, and what they tell each other.

Every process holds the whole model, or a shard of it (sharding.py), and takes the same optimiser steps. The
rows of a step are shared among them; since each row's loss is normalised by the counts of the whole step,
gradients, losses and figures of the shares add up to those of one process, up to rounding. That is
distributed data parallelism; gradients are summed before the optimiser's step rather than by the hooks of
torch's wrapper, since losses here call a model's trunk and head apart, which such hooks do not see, and a
process may have no row at all.

Which processes there are is torch.distributed's to know, as the number of threads is torch's. Without a
process group there is one, and everything here is the identity.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prefloop.errors import TrainingError
from prefloop.training import lockstep
from prefloop.training.memory import SHARDED_REMEDY, is_out_of_memory

T = TypeVar("T")

TIMEOUT_SECONDS = 1800.0
"""How long a process waits for the others: longer than loading a model or writing a checkpoint takes."""
BUCKET_ELEMENTS = 2**24
"""Gradients are summed in flat pieces of this many numbers (64 MiB of float32): few calls, little memory."""


class RankLost(TrainingError):
    """Another process of the training ended, or does not answer."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training. All of them call each method, in the same order.

    Attributes:
        rank: 0-based number of this process; 0 alone writes files. count: how many there are.
        sharded: they share the weights that train, too (`prefloop.training.sharding`).
    """

    rank: int = 0
    count: int = 1
    sharded: bool = False

    @property
    def main(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's items: every `count`-th from the `rank`-th on. It may be none."""
        return list(items[self.rank :: self.count])

    def gather(self, value: T) -> list[T]:
        """What each process has, in the order of ranks; tensors in it are on the CPU."""
        if self.count == 1:
            return [value]
        found: list[T] = [value] * self.count
        with answered():
            dist.all_gather_object(found, value)
        return found

    def from_main(self, value: T) -> T:
        """What rank 0 has."""
        if self.count == 1:
            return value
        holder = [value]
        with answered():
            dist.broadcast_object_list(holder, src=0)
        return holder[0]

    def together(self, compute: Callable[[], T]) -> list[T]:
        """What each process computes, in the order of ranks. Where their weights are sharded, they go through
        the model in lockstep until none has a pass left.

        Raises:
            MemoryError, torch.OutOfMemoryError: memory ran out in one of them, of which all are told.
            TrainingError: memory ran out in this one, and its weights are sharded: the others, which wait
                for its shards, end with RankLost.
        """
        if self.count == 1:
            return [compute()]
        own, failure = None, None
        passes = lockstep.present()
        try:
            own = compute()
            if passes is not None:
                passes.settle()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                if passes is not None and _is_lost(error):
                    raise _lost(error) from error
                raise
            if passes is not None and passes.active:
                raise TrainingError(
                    f"memory ran out in process {self.rank} of {self.count}, which share the weights: the "
                    "others cannot take the step again without it",
                    SHARDED_REMEDY,
                ) from error
            failure = str(error) or "out of memory"
        found = self.gather((own, failure))
        failures = [f"rank {rank}: {why}" for rank, (_, why) in enumerate(found) if why is not None]
        if failures:
            raise MemoryError(failures[0])
        return [value for value, _ in found]  # type: ignore[misc]

    def woven(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """The items of which `share` gave each process its own, from all shares in the order of ranks."""
        whole: list[T] = [shares[0][0]] * sum(map(len, shares)) if any(shares) else []
        for rank, share in enumerate(shares):
            whole[rank :: self.count] = share
        return whole

    def sum(self, tensor: Tensor) -> Tensor:
        """Replaces a tensor by its sum over the processes, in which it has the same shape."""
        if self.count > 1:
            with answered():
                dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Adds up the gradients of all processes, in each of them.

        A process without a row has none: they count as 0 there. What has no gradient anywhere keeps none, so
        that the optimiser leaves it alone.
        """
        if self.count == 1 or not parameters:
            return
        seen = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        seen = self.sum(seen.to(parameters[0].device))
        learned = [p for p, times in zip(parameters, seen.tolist(), strict=True) if times]
        for parameter in learned:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in learned if p.grad is not None]):
            flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    @torch.no_grad()
    def copy_from_main(self, parameters: Iterable[Tensor]) -> None:
        """Gives every process the weights of rank 0, so that they begin with the same."""
        if self.count > 1:
            with answered():
                for parameter in parameters:
                    dist.broadcast(parameter.data, src=0)


ALONE = Ranks()
"""One process, whatever others there are: for what each of them does in full."""


def ranks() -> Ranks:
    """This process among those that torch.distributed knows of."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size(), lockstep.present() is not None)
    return ALONE


def added(shares: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Figures summed by name; a share without a name adds 0 to it."""
    total: dict[str, float] = {}
    for share in shares:
        for name, value in share.items():
            total[name] = total.get(name, 0.0) + value
    return total


def meeting(path: Path, count: int, timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
    """Where the processes of one machine find each other: a file, so that no port is open to others.

    Returns:
        A `torch.distributed.FileStore`.
    """
    store = dist.FileStore(str(path), count)  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=timeout_seconds))
    return store


@contextmanager
def joined(
    rank: int,
    count: int,
    store: Any,
    *,
    device: str = "cpu",
    sharded: bool = False,
    precision: str = "fp32",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Iterator[Ranks]:
    """Makes this process rank `rank` of `count` for the length of the block; waits until all have come.

    Args:
        store: from `meeting`, the same file in all processes.
        device: "cpu" (gloo) or "cuda" (NCCL), where process i takes the i-th visible GPU.
        sharded: weights that train are sharded. precision: "fp32" or "bf16", in which they then travel.

    Raises:
        RankLost: not all came in time.
    """
    from accelerate import PartialState

    number, of = str(rank), str(count)
    threads = torch.get_num_threads()
    about = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": of, "LOCAL_WORLD_SIZE": of}
    about["OMP_NUM_THREADS"] = str(threads)  # else accelerate sets threads of its own choice
    if sys.platform == "linux":
        about["GLOO_SOCKET_IFNAME"] = "lo"  # reachable on this machine alone
    # accelerate reads these variables, which no process that this one starts is to inherit.
    with _variables(about), answered():
        PartialState(
            cpu=device == "cpu",
            store=store,
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=timeout_seconds),
        )
        # What the next pass is they tell each other on the CPU, lest the GPU be waited for.
        cpu = dist.new_group(backend="gloo") if sharded and device != "cpu" else None
    torch.set_num_threads(threads)
    try:
        with lockstep.kept(cpu, precision) if sharded else nullcontext():
            yield ranks()
    except BaseException:
        if device == "cpu":  # NCCL would wait for the others
            dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()
    finally:
        PartialState._reset_state()


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the length of the block; all are then as they were."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def answered() -> Iterator[None]:
    """Turns torch's complaints about others that do not answer into RankLost."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise _lost(error) from error


def _is_lost(error: BaseException) -> bool:
    """True for what gloo and NCCL raise when another process is gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(name in text for name in ("gloo", "nccl", "by peer"))


def _lost(error: BaseException) -> RankLost:
    first = (str(error).splitlines() or [""])[0]
    return RankLost(
        f"another process of this training ended or does not answer: {first}",
        "run again: it goes on from the last checkpoint, with compute.processes 1 in this process alone",
    )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type side by side, up to BUCKET_ELEMENTS together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in sorted(tensors, key=lambda t: str(t.dtype)):
        if bucket and (size + tensor.numel() > BUCKET_ELEMENTS or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
