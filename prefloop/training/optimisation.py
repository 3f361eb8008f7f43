"""AdamW with warm-up, schedule and clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefloop.config.training import TrainingConfig
from prefloop.models.adapter_dropout import recomputation
from prefloop.models.adapters import plain
from prefloop.training.distribution import ranks


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
    """One AdamW over the trainable parameters of a module.

    Args:
        module: what is trained. config: rates and constants. total: optimiser steps of the whole training.
        learning_rate: overrides the config's peak rate (a critic's, say).
    """

    def __init__(
        self, module: nn.Module, config: TrainingConfig, total: int, *, learning_rate: float | None = None
    ) -> None:
        self.config, self.total = config, total
        self.peak = learning_rate or config.learning_rate
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for p in self.parameters if p.ndim >= 2]
        others = [p for p in self.parameters if p.ndim < 2]
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
        ranks().sum_gradients(self.parameters)
        rate = self.peak * rate_factor(self.config, number, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        norm = clip(self.parameters, self.config.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(norm), rate

    def state_dict(self) -> dict[str, Any]:
        return self.optimiser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state)


def clip(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scales gradients down to global norm `limit` (0: leaves them); returns the norm before."""
    kept = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in kept if p.grad is not None])
    if limit:
        nn.utils.clip_grads_with_norm_(kept, limit, norm)
    return norm


def save_memory(model: PreTrainedModel, config: TrainingConfig) -> None:
    """Has a model recompute activations in its backward passes, if the configuration asks for it."""
    if config.gradient_checkpointing:
        plain(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs=recomputation(model))
