"""PPO for language models: rewards with a KL penalty, advantages, clipped losses.

Details after Stiennon et al. 2020, Ouyang et al. 2022 and Huang et al. 2023 ("The N implementation details of
RLHF with PPO"). Shapes: B sequences of T tokens; `mask` (B, T) is True on a completion's tokens, the end
token included, which stand together: what comes before (the prompt) and after (padding) is False.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prefloop.objectives.kl import LOG_RATIO_LIMIT
from prefloop.objectives.masked import masked_mean


def token_rewards(scores: Tensor, policy: Tensor, reference: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """r_t = -beta (log pi_t - log pi_ref_t), plus the score once, at the last real token.

    Args:
        scores: (B,) float, what the reward sources gave each completion.
        policy, reference: (B, T) float, the sampled tokens' log-probs under policy and reference.

    Returns:
        (B, T) float, 0 where the mask is False.
    """
    rewards = torch.where(mask, -beta * (policy - reference), torch.zeros_like(policy))
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=-1)
    real = mask.any(dim=-1).to(rewards.dtype)
    return rewards.scatter_add(1, last.unsqueeze(1), (scores * real).to(rewards.dtype).unsqueeze(1))


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) and returns = advantages + values.

    delta_t = r_t + gamma V_{t+1} - V_t with V = 0 after the last real token; masked tokens neither contribute
    nor bootstrap. Returns are taken before any whitening.

    Args:
        rewards, values: (B, T) float.

    Returns:
        advantages (B, T), returns (B, T); 0 where the mask is False.
    """
    values = torch.where(mask, values, torch.zeros_like(values))
    rewards = torch.where(mask, rewards, torch.zeros_like(rewards))
    advantages = torch.zeros_like(values)
    trace = torch.zeros_like(values[:, 0])
    following = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        trace = torch.where(mask[:, t], delta + gamma * gae_lambda * trace, torch.zeros_like(trace))
        advantages[:, t] = trace
        following = values[:, t]
    return advantages, torch.where(mask, advantages + values, torch.zeros_like(values))


@dataclass(frozen=True)
class PolicyTerms:
    """Each (B, T) float: a token's loss, whether its clip was active, k3 between old and new policy."""

    loss: Tensor
    clipped: Tensor
    approx_kl: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float = 0.0,
) -> PolicyTerms:
    """max(-A rho, -A clip(rho, 1 - eps, 1 + eps)) for each token (Schulman et al. 2017, eq. 7).

    Args:
        logprobs, old_logprobs: (B, T) float, of the sampled tokens now and when they were sampled.
        advantages: (B, T) float.
        clip_range: eps; 0 leaves the ratio as it is.
        clip_range_high: an eps of its own for ratios above 1 (Yu et al. 2025, eq. 10); None: the same.
        dual_clip: c > 1 bounds the loss of a negative advantage at -c A (Ye et al. 2020, eq. 5); 0: off.
    """
    delta = (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = delta.exp()
    plain = -advantages * ratio
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = -advantages * ratio.clamp(1 - clip_range if clip_range else 0.0, 1 + high if high else math.inf)
    loss = torch.maximum(plain, clipped)
    if dual_clip:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    # k3 of KL(old || new) on samples of the old policy: exp(delta) - 1 - delta.
    return PolicyTerms(loss, (clipped > plain).to(loss.dtype), (ratio - 1 - delta).detach())


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range: float) -> Tensor:
    """1/2 max((V - R)^2, (clip(V, V_old +- eps) - R)^2) for each token, (B, T); eps 0 turns clipping off."""
    plain = (values - returns) ** 2
    if not clip_range:
        return 0.5 * plain
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum(plain, (clipped - returns) ** 2)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over real tokens; 1 is a perfect critic, 0 a constant one."""

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-8)
