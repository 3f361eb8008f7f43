"""REINFORCE++: Hu 2025 (arXiv 2501.03262). PPO's clipped loss without a critic."""

from __future__ import annotations

import torch
from torch import Tensor

from prefloop.objectives.masked import masked_whiten
from prefloop.objectives.ppo import generalised_advantages


def returns_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    """A_t = sum over s >= t of r_s, which for `token_rewards` is score - beta sum over s >= t of k1_s.

    Args:
        rewards: (B, T) float. mask: (B, T) bool, True on completion tokens.

    Returns:
        (B, T) float, 0 where the mask is False: GAE without a critic, gamma 1 and lambda 1.
    """
    return generalised_advantages(rewards, torch.zeros_like(rewards), mask, gamma=1.0, gae_lambda=1.0)[0]


def whitened(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages (B, T) at mean 0 and variance 1 over all real tokens of the batch; exactly 0 where they
    are all equal."""
    real = advantages[mask]
    if real.numel() and bool((real == real[0]).all()):
        return torch.zeros_like(advantages)
    return masked_whiten(advantages, mask)
