"""Group relative policy optimisation: a prompt's other completions are the baseline, no critic.

GRPO: Shao et al. 2024 (arXiv 2402.03300), eq. 3. DAPO: Yu et al. 2025 (arXiv 2503.14476). Dr. GRPO: Liu et
al. 2025 (arXiv 2503.20783). The clipped ratio is `policy_loss` of ppo.py. Shapes: N prompts with G
completions each; B = N G sequences of T tokens, those of a prompt side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4
"""Added to the standard deviation that rewards are divided by."""


def all_equal(rewards: Tensor) -> Tensor:
    """(N,) bool, True for a group whose rewards (N, G) are the same: it says nothing about what is better."""
    return (rewards == rewards[:, :1]).all(dim=-1)


def group_advantages(rewards: Tensor, *, scale: str = "group") -> Tensor:
    """(r - mean of its group) / (std + 1e-4), with Bessel's std (Shao et al. 2024, section 4.1.2).

    Args:
        rewards: (N, G) float.
        scale: "group": the std of each group; "batch": of all rewards; "none": no division, which keeps
            groups from weighing more the less their rewards differ (Liu et al. 2025, section 3.1).

    Returns:
        (N, G) float; exactly 0 in a group whose rewards are all equal, never NaN.
    """
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    if scale == "group" and rewards.numel() and rewards.shape[-1] > 1:
        centred = centred / (rewards.std(dim=-1, keepdim=True) + EPSILON)
    elif scale == "batch" and rewards.numel() > 1:
        centred = centred / (rewards.std() + EPSILON)
    # The mean of equal numbers may differ from them in the last bit.
    return torch.where(all_equal(rewards).unsqueeze(-1), torch.zeros_like(centred), centred)


def token_weights(mask: Tensor, *, normaliser: str, rows: int, tokens: int, length: int) -> Tensor:
    """What each token's loss counts, (B, T) float; an update's loss is the sum of weight times loss.

    Args:
        mask: (B, T) bool, True on completion tokens; of some rows of the update.
        normaliser: "sequence": 1 / (rows x own length), the mean over completions of their tokens' means
            (GRPO); "tokens": 1 / tokens, the mean over all tokens (DAPO, eq. 12); "constant":
            1 / (rows x length), which depends on no sampled length (Dr. GRPO); with length 1 the gradient is
            that of the mean log-prob of whole completions.
        rows, tokens: completions and completion tokens of the whole update, so that micro-batches add up.
        length: the constant (tokens).
    """
    if normaliser == "sequence":
        weights = 1.0 / (max(rows, 1) * mask.sum(dim=-1, keepdim=True).clamp(min=1)).double()
    elif normaliser == "tokens":
        weights = torch.full((len(mask), 1), 1.0 / max(tokens, 1), dtype=torch.float64, device=mask.device)
    else:
        weights = torch.full(
            (len(mask), 1), 1.0 / (max(rows, 1) * length), dtype=torch.float64, device=mask.device
        )
    return weights * mask
