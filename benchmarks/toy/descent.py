"""Bringing a table to rest, by exact gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def minimise(table: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits at which a smooth loss is least, from `table` on (L-BFGS)."""
    logits = nn.Parameter(table.clone())
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-11, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimiser.step(closure)
    return logits.detach()


def follow(
    table: Tensor,
    losses: Callable[[Tensor], Iterable[Tensor]],
    *,
    steps: int,
    rate: float,
    others: Iterable[nn.Parameter] = (),
) -> Tensor:
    """The logits after following the gradients of an on-policy method, at a rate that falls to 0 (Adam).

    Args:
        losses: of the present logits, those of one rollout batch's updates, each made when it is asked for.
        others: parameters that learn beside the table, such as a critic's.
    """
    logits = nn.Parameter(table.clone())
    optimiser = torch.optim.Adam([logits, *others], lr=rate, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        for loss in losses(logits):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return logits.detach()
