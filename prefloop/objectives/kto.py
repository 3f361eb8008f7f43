"""Kahneman-Tversky optimisation: single completions, each marked desirable or not, and a reference point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prefloop.objectives.completions import implicit_reward


@dataclass(frozen=True)
class KTOTerms:
    """Each (B,) float: the loss of a row, with gradient, and its implicit reward, without."""

    loss: Tensor
    reward: Tensor


def reference_point(policy: Tensor, reference: Tensor) -> Tensor:
    """z0 = max(0, mean of log pi(y'|x) - log pi_ref(y'|x)), y' being answers to other prompts than x.

    The batch's estimate of KL(pi || pi_ref) (Ethayarajh et al. 2024, section 4.1): a scalar without gradient;
    0 where there is no such pair.

    Args:
        policy, reference: (M,) float, log-probs SUMMED over each mismatched completion's tokens.
    """
    if not len(policy):
        return policy.new_zeros(())
    return (policy - reference).mean().clamp(min=0).detach()


def kto_loss(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    point: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> KTOTerms:
    """lambda_y - v(x, y) (Ethayarajh et al. 2024, eq. 8), with r = log pi - log pi_ref and

        v = lambda_D sigmoid(beta (r - z0)) where y is desirable, lambda_U sigmoid(beta (z0 - r)) where not.

    Args:
        policy, reference: (B,) float, log-probs SUMMED over the completion's tokens.
        desirable: (B,) bool, True on desirable completions.
        point: scalar z0, of the whole step; no gradient flows into it.
        beta: how soon gains and losses saturate: the tie to the reference.
        desirable_weight, undesirable_weight: lambda_D and lambda_U.
    """
    reward = implicit_reward(policy, reference, beta)
    gain = reward - beta * point.detach()
    # As tensors of the rewards' precision: plain numbers would be rounded to float32.
    weight = torch.where(
        desirable, reward.new_tensor(desirable_weight), reward.new_tensor(undesirable_weight)
    )
    # lambda (1 - sigmoid(x)) is lambda sigmoid(-x), without a difference of near equals.
    loss = weight * torch.sigmoid(torch.where(desirable, -gain, gain))
    return KTOTerms(loss, reward.detach())
