"""REINFORCE with a leave-one-out baseline: Ahmadian et al. 2024 (arXiv 2402.14740)."""

from __future__ import annotations

import torch
from torch import Tensor

from prefloop.objectives.grpo import all_equal


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """r_i less the mean of the OTHER rewards of its group: (N, G) float -> (N, G), G above 1.

    The baseline does not depend on the completion it is taken from, so the gradient of the expected reward
    stays unbiased. With the KL in the reward, r_i = score_i - beta sum_t (log pi_t - log pi_ref_t), it is
    that of E[score] - beta KL. Exactly 0 in a group whose rewards are all equal.

    Raises:
        ValueError: groups of one.
    """
    count = rewards.shape[-1]
    if count < 2:
        raise ValueError("a leave-one-out baseline needs at least two completions a prompt")
    advantages = (count * rewards - rewards.sum(dim=-1, keepdim=True)) / (count - 1)
    return torch.where(all_equal(rewards).unsqueeze(-1), torch.zeros_like(advantages), advantages)
