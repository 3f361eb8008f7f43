"""AdamW, or Muon beside it, with warm-up, schedule and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefloop.config.training import TrainingConfig
from prefloop.errors import ConfigError
from prefloop.models import adapter_dropout, ragged
from prefloop.models.adapters import plain
from prefloop.models.hidden_matrices import hidden_matrices
from prefloop.training.distribution import ranks
from prefloop.training.muon import Muon
from prefloop.training.sharding import REMEDY, is_shard, joined_parts, part_for, part_of, shard

_MOMENTS = ("exp_avg", "exp_avg_sq")


def rate_factor(config: TrainingConfig, step: int, total: int) -> float:
    """Share of the peak learning rate at 0-based optimiser step `step` of `total`.

    It rises linearly over the warm-up and is never 0 within the run, so that the first and the last step
    count.
    """
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(total - warmup, 1)
    if config.schedule == "linear":
        return 1.0 - progress
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


class Optimisation:
    """One AdamW over the trainable parameters of a module, which it shards where `compute.sharding` asks for
    it: this process then moves its parts of them, and holds the state of these alone. With `optimizer` muon
    the hidden matrices are moved by a Muon, at the same rate and decay.

    Args:
        module: what is trained. config: rates and constants. total: optimiser steps of the whole training.
        learning_rate: overrides the config's peak rate (a critic's, say).

    Attributes:
        parameters: what is trained. replicated: those of which each process holds the whole.
        optimiser: the AdamW. muon: None where it has nothing to move.

    Raises:
        ConfigError: Muon is to move what is sharded, or see `prefloop.training.sharding.shard`.
    """

    def __init__(
        self, module: nn.Module, config: TrainingConfig, total: int, *, learning_rate: float | None = None
    ) -> None:
        self.config, self.total = config, total
        self.peak = learning_rate or config.learning_rate
        if config.optimizer == "muon" and ranks().sharded:
            raise ConfigError(
                "optimizer is muon, which needs whole matrices, but compute.sharding is full",
                f"{REMEDY}, or optimizer to adamw",
            )
        shard(module)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.replicated = [p for p in self.parameters if not is_shard(p)]
        self._shards = [(p, nn.Parameter(part_of(p))) for p in self.parameters if is_shard(p)]
        parts = {id(p): part for p, part in self._shards}
        hidden = hidden_matrices(module) if config.optimizer == "muon" else []
        self.muon = Muon(hidden, lr=self.peak, weight_decay=config.weight_decay) if hidden else None
        moved = {id(p) for p in hidden}
        matrices = [parts.get(id(p), p) for p in self.parameters if p.ndim >= 2 and id(p) not in moved]
        others = [parts.get(id(p), p) for p in self.parameters if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.peak,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            fused=True,
        )

    def step(self, number: int) -> tuple[float, float]:
        """Sums the gradients of 0-based step `number` over processes, clips, applies and clears them.

        Returns:
            Norm of the gradient before clipping, and the rate.
        """
        ranks().sum_gradients(self.replicated)
        for parameter, part in self._shards:  # whose gradients FSDP has summed
            part.data = part_of(parameter)
            part.grad = None if parameter.grad is None else part_of(parameter.grad)
        rate = self.peak * rate_factor(self.config, number, self.total)
        norm = clip(self.replicated, self.config.max_grad_norm, [part for _, part in self._shards])
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        self.clear()
        return float(norm), rate

    def clear(self) -> None:
        """Forgets the gradients."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        for parameter, _ in self._shards:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state as one process has it; all processes call it, and rank 0 has the whole."""
        state = self._each_part(self.optimiser.state_dict(), joined_parts)
        return {**state, "muon": self.muon.state_dict()} if self.muon else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave in rank 0, whichever number of processes it was of."""
        if self.muon:
            self.muon.load_state_dict(state["muon"])
        adamw = {name: value for name, value in state.items() if name != "muon"}
        self.optimiser.load_state_dict(self._each_part(adamw, part_for))

    @property
    def _optimisers(self) -> list[torch.optim.Optimizer]:
        return [self.optimiser, *([self.muon] if self.muon else [])]

    def _each_part(self, state: dict[str, Any], change: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
        """An optimiser's state with `change(tensor, parameter)` in place of what is as large as a sharded
        parameter, or as this process's part of it."""
        if not self._shards:
            return state
        whole = {id(part): parameter for parameter, part in self._shards}
        moved = [part for group in self.optimiser.param_groups for part in group["params"]]
        changed = dict(state["state"])
        for number, part in enumerate(moved):
            if number in changed and (like := whole.get(id(part))) is not None:
                changed[number] = {
                    name: change(value, like) if name in _MOMENTS else value
                    for name, value in changed[number].items()
                }
        return {**state, "state": changed}


def clip(parameters: Sequence[Tensor], limit: float, shards: Sequence[Tensor] = ()) -> Tensor:
    """Scales gradients down to global norm `limit` (0: leaves them); returns the norm before.

    Args:
        parameters: of which each process holds the same. shards: of which each holds another part.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if shards:
        own = nn.utils.get_total_norm([p.grad for p in shards if p.grad is not None]).double().square()
        norm = (norm.double().square() + ranks().sum(own.to(shards[0].device))).sqrt().float()
    if limit:
        nn.utils.clip_grads_with_norm_([*parameters, *shards], limit, norm)
    return norm


def save_memory(model: PreTrainedModel, config: TrainingConfig) -> None:
    """Has a model recompute activations in its backward passes, if the configuration asks for it."""
    if config.gradient_checkpointing:
        plain(model).gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": partial(_contexts, model)}
        )


def _contexts(model: PreTrainedModel) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For a block's first computation, and for its second, which is to give what the first did."""
    again = ragged.recomputed(plain(model).base_model), adapter_dropout.recomputed(model)
    return nullcontext(), _within(*again)


@contextmanager
def _within(*contexts: AbstractContextManager[None]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
