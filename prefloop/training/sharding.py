"""Weights, gradients and optimiser state of what trains, sharded over processes (torch's FSDP2).

Of the matrices of each block of a model (a decoder's or encoder's layer) every process keeps a shard; a pass
gathers one block at a time and frees it again (Zhao et al. 2023, arXiv 2304.11277; Rajbhandari et al. 2020,
arXiv 1910.02054, stage 3). Norms and biases are small and stay whole in each process; so do embeddings and
head, since losses call a model's trunk and its head apart, and tied weights are of both.

A sharded block stands in a model in the place of the plain one, whose matrices are meanwhile empty. Where no
gradient is taken (sampling, looks) the plain blocks come back for a while, with gathered weights: such phases
then need not run in lockstep, and know nothing of shards. After a training they come back for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prefloop.errors import ConfigError, TrainingError
from prefloop.training.distribution import answered, ranks
from prefloop.training.lockstep import present
from prefloop.training.memory import is_out_of_memory

REMEDY = "set compute.sharding to none"


@dataclass
class Block:
    """A block of a model: where it stands, as it was, and as it trains."""

    layers: nn.ModuleList
    place: int
    plain: nn.Module
    sharded: nn.Module

    def gather(self) -> None:
        """Puts the plain block in place, with the weights of all shards; all processes call it."""
        shards = dict(self.sharded.named_parameters())
        for name, parameter in self.plain.named_parameters():
            if _divides(parameter):
                parameter.data = cast(Any, shards[name].detach()).full_tensor()
        self.plain.train(self.sharded.training)
        self.layers[self.place] = self.plain

    def scatter(self) -> None:
        """Puts the sharded block in place, and frees what the plain one holds."""
        self.sharded.train(self.plain.training)
        self.layers[self.place] = self.sharded
        for parameter in self.plain.parameters():
            if _divides(parameter):
                parameter.data = parameter.data.new_empty((0,) * parameter.ndim)


class Shards:
    """The sharded blocks of one model. Their matrices are DTensors, except while it is gathered."""

    def __init__(self, model: PreTrainedModel, mesh: Any) -> None:
        self.trunk = model.base_model
        self.blocks: list[Block] = []
        self.depth = 0
        options = _options(mesh)
        for layers, place in _places(model):
            plain = layers[place]
            ranks().copy_from_main(plain.parameters())
            self.blocks.append(Block(layers, place, plain, _sharded(plain, options)))
            self.blocks[-1].scatter()
        self._overlap()
        _lockstep().watch(self.trunk)

    def _overlap(self) -> None:
        """Has a block gathered while the one before it computes.

        To FSDP each block is a root of its own, which knows only what it is told of the others, and that only
        after a first pass.
        """
        from torch.distributed.fsdp import share_comm_ctx

        share_comm_ctx([cast(Any, block.sharded) for block in self.blocks])
        with answered():
            _lockstep().idle(self.trunk, gradient=False)
        for block, following in pairwise(self.blocks):
            if block.layers is following.layers:
                cast(Any, block.sharded).set_modules_to_forward_prefetch([following.sharded])

    def gather(self) -> None:
        """Makes the model whole in every process; it is then as if it had never been sharded."""
        if not self.depth:
            _lockstep().leave(self.trunk)
            try:
                with answered(), torch.no_grad():
                    for block in self.blocks:
                        block.gather()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise TrainingError(
                    "memory ran out for the whole weights, which a process needs to sample and to save them",
                    "use more processes, train an adapter (lora.rank above 0), or take a smaller model",
                ) from error
        self.depth += 1

    def scatter(self) -> None:
        """Undoes a `gather`; what was written to the weights between the two is lost."""
        self.depth -= 1
        if not self.depth:
            for block in self.blocks:
                block.scatter()
            _lockstep().watch(self.trunk)

    def abandon(self) -> None:
        """Leaves the model as it is: its training ended before its time."""
        _lockstep().leave(self.trunk)


_SHARDS: WeakKeyDictionary[nn.Module, Shards] = WeakKeyDictionary()


def shard(module: nn.Module) -> None:
    """Shards the blocks of the model in `module`, where `compute.sharding` asks for it; a head alone stays.

    Raises:
        ConfigError: the model has no blocks that can be sharded.
    """
    if not ranks().sharded or module in _SHARDS:
        return
    model = next((part for part in module.modules() if isinstance(part, PreTrainedModel)), None)
    if model is not None:
        _SHARDS[module] = Shards(model, _mesh(model.device.type))


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """The block in which each process has whole weights of these modules, to read; all enter it together."""
    with ExitStack() as stack:
        for module in modules:
            if shards := _SHARDS.get(module):
                shards.gather()
                stack.callback(shards.scatter)
        yield


@contextmanager
def training(*modules: nn.Module) -> Iterator[None]:
    """The length of a training: at its end these modules are whole, and plain, in each process."""
    try:
        yield
    except BaseException:
        for module in modules:
            if shards := _SHARDS.pop(module, None):
                shards.abandon()
        raise
    for module in modules:
        if shards := _SHARDS.pop(module, None):
            shards.gather()


def is_shard(tensor: Tensor) -> bool:
    """True for a tensor of which this process holds a part."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def part_of(tensor: Any) -> Tensor:
    """What this process holds of a sharded tensor: the same memory."""
    return cast(Tensor, tensor.detach().to_local())


def joined_parts(part: Tensor, like: Any) -> Tensor:
    """A whole tensor from the parts that all processes hold, sharded like `like`.

    Returns:
        It on the CPU of rank 0, which alone writes checkpoints; an empty tensor in the others.
    """
    from torch.distributed.tensor import DTensor

    with answered(), torch.no_grad():
        spread = DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        whole = spread.full_tensor()
    return whole.cpu() if ranks().main else whole.new_empty(0, device="cpu")


def part_for(whole: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor, sharded like `like`; the reverse of `joined_parts`."""
    from torch.distributed.tensor import distribute_tensor

    moved = whole.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None).to_local()


def _places(model: PreTrainedModel) -> list[tuple[nn.ModuleList, int]]:
    """Where blocks stand: what transformers recomputes one by one in gradient checkpointing."""
    places = [
        (layers, place)
        for layers in model.base_model.modules()
        if isinstance(layers, nn.ModuleList)
        for place, layer in enumerate(layers)
        if isinstance(layer, GradientCheckpointingLayer)
    ]
    if not places:
        raise ConfigError(
            f"compute.sharding is full, but no blocks to shard were found in a model of type "
            f"{model.config.model_type}",
            REMEDY,
        )
    owned = [id(parameter) for layers, place in places for parameter in layers[place].parameters()]
    if len(set(owned)) < len(owned):
        raise ConfigError(
            f"compute.sharding is full, but blocks share weights in a model of type "
            f"{model.config.model_type}",
            REMEDY,
        )
    return places


def _options(mesh: Any) -> dict[str, Any]:
    """What `fully_shard` takes. In bf16 matrices travel in it: autocast, which computes with them in bf16 all
    the same, would else make a copy of each and keep it for the backward pass. Gradients are summed in
    float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy()
    if _lockstep().precision == "bf16":
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return {"mesh": mesh, "reshard_after_forward": True, "mp_policy": policy}


def _divides(parameter: Tensor) -> bool:
    """True for a matrix, or more: what is divided."""
    return parameter.ndim >= 2


def _sharded(block: nn.Module, options: dict[str, Any]) -> nn.Module:
    """A copy of a block that has the block's own vectors, and its matrices sharded."""
    from torch.distributed.fsdp import fully_shard

    vectors = {parameter for parameter in block.parameters() if not _divides(parameter)}
    copied = deepcopy(block, {id(parameter): parameter for parameter in vectors})
    sharded = fully_shard(copied, ignored_params=vectors, **options)
    # Losses are normalised by the counts of the whole step, so gradients are to be summed, not averaged.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
    return cast(nn.Module, sharded)


def _mesh(device: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device, (ranks().count,))


def _lockstep() -> Any:
    lockstep = present()
    assert lockstep is not None, "weights are sharded within `joined` alone"
    return lockstep
