"""Direct preference optimisation: a policy fitted to comparisons without a reward model."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DPOTerms:
    """Each (P,) float: the loss of a pair and the implicit rewards beta (log pi - log pi_ref)."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: Tensor | float = 0.0,
) -> DPOTerms:
    """-log sigmoid(beta [(log pi_c - ref_c) - (log pi_r - ref_r)]) (Rafailov et al. 2023, eq. 7).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: (P,) float, log-probs SUMMED
            over the completion's tokens.
        beta: strength of the tie to the reference.
        label_smoothing: scalar or (P,), share of labels taken to be flipped; the loss is then the expected
            one (cDPO, Mitchell 2023).
    """
    chosen_reward = beta * (policy_chosen - reference_chosen)
    rejected_reward = beta * (policy_rejected - reference_rejected)
    gap = chosen_reward - rejected_reward
    loss = -(1 - label_smoothing) * F.logsigmoid(gap) - label_smoothing * F.logsigmoid(-gap)
    return DPOTerms(loss, chosen_reward.detach(), rejected_reward.detach())
