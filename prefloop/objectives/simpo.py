"""Simple preference optimisation: the log-prob a token is the reward, without a reference model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prefloop.objectives.completions import PairTerms, expected_loss


def simpo_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float, margin: float, probability: Tensor | float = 1.0
) -> PairTerms:
    """-log sigmoid(beta log p_c - beta log p_r - gamma) (Meng et al. 2024, eq. 6).

    Args:
        chosen, rejected: (P,) float, MEAN log-probs a token, log p: what generation maximises, and no longer
            for being long.
        beta: scale of the reward.
        margin: gamma, by how much the chosen reward has to be ahead.
        probability: scalar or (P,), a soft label: the loss is the mean over labels, p of which stand.
    """
    chosen_reward, rejected_reward = beta * chosen, beta * rejected
    gap = chosen_reward - rejected_reward
    loss = expected_loss(lambda x: -F.logsigmoid(x - margin), gap, 1 - probability)
    return PairTerms(loss, chosen_reward.detach(), rejected_reward.detach())
