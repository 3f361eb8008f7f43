"""Heads: what reads scores, values or logits from hidden states, in float32 where that costs little.

In bf16 a logit of 16 is rounded to a multiple of 1/8, so a token's log-prob is off by several hundredths: as
much as a policy's log-ratios are, by which PPO clips and a KL penalty counts.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

SMALL = 2**20
"""Weights of a head up to which it computes in float32: a vocabulary of 8,000 at a width of 128."""


def read(head: nn.Module, states: Tensor) -> Tensor:
    """What a head gives of hidden states (..., D): (..., outputs), float32 where it `reads_in_float32`."""
    if not reads_in_float32(head, states.device):
        return cast(Tensor, head(states))
    with torch.autocast(states.device.type, enabled=False):
        return cast(Tensor, head(states.float()))


def reads_in_float32(head: nn.Module | None, device: torch.device) -> bool:
    """True for a small head within a context that computes in bf16."""
    return head is not None and torch.is_autocast_enabled(device.type) and is_small(head)


def is_small(head: nn.Module) -> bool:
    """True for a head of few weights, all float32."""
    parameters = list(head.parameters())
    return sum(parameter.numel() for parameter in parameters) <= SMALL and all(
        parameter.dtype == torch.float32 for parameter in parameters
    )
