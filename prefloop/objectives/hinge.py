"""The hinge of SLiC-HF on implicit rewards: a pair that is ahead by enough is left alone."""

from __future__ import annotations

import torch
from torch import Tensor

from prefloop.objectives.completions import PairTerms, expected_loss, implicit_reward


def hinge_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    probability: Tensor | float = 1.0,
) -> PairTerms:
    """max(0, 1 - beta [(log pi_c - ref_c) - (log pi_r - ref_r)]).

    SLiC-HF's calibration loss max(0, delta - log pi_c + log pi_r) (Zhao et al. 2023) with log-ratios to
    the reference in place of log-probs, which keeps the tie to it (Liu et al. 2024, RSO, "hinge-norm");
    1 / beta is then SLiC's delta (nats).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: (P,) float, log-probs SUMMED
            over the completion's tokens.
        probability: scalar or (P,), a soft label: the loss is the mean over labels, p of which stand.
    """
    chosen = implicit_reward(policy_chosen, reference_chosen, beta)
    rejected = implicit_reward(policy_rejected, reference_rejected, beta)
    loss = expected_loss(lambda gap: torch.relu(1 - gap), chosen - rejected, 1 - probability)
    return PairTerms(loss, chosen.detach(), rejected.detach())
