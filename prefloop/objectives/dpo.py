"""Direct preference optimisation: a policy fitted to comparisons without a reward model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prefloop.objectives.completions import PairTerms, expected_loss, implicit_reward


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: Tensor | float = 0.0,
    probability: Tensor | float = 1.0,
) -> PairTerms:
    """-log sigmoid(beta [(log pi_c - ref_c) - (log pi_r - ref_r)]) (Rafailov et al. 2023, eq. 7).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: (P,) float, log-probs SUMMED
            over the completion's tokens.
        beta: strength of the tie to the reference.
        label_smoothing: scalar or (P,), share of labels taken to be flipped; the loss is then the expected
            one (cDPO, Mitchell 2023).
        probability: scalar or (P,), a soft label: the share of raters who prefer the chosen one. It counts as
            a label of which 1 - p is flipped; smoothing flips a share of either.
    """
    chosen = implicit_reward(policy_chosen, reference_chosen, beta)
    rejected = implicit_reward(policy_rejected, reference_rejected, beta)
    flipped = label_smoothing + (1 - probability) * (1 - 2 * label_smoothing)
    loss = expected_loss(_logistic, chosen - rejected, flipped)
    return PairTerms(loss, chosen.detach(), rejected.detach())


def robust_dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: Tensor | float,
    probability: Tensor | float = 1.0,
) -> PairTerms:
    """[(1 - e) L(c, r) - e L(r, c)] / (1 - 2e), L being DPO's loss (rDPO, Chowdhury et al. 2024).

    Where labels are flipped with probability e, its expectation is the loss on labels that are not: unbiased,
    where cDPO is not. The price is variance, 1 / (1 - 2e), and a loss without a lower bound.

    Args:
        label_smoothing: e, below 1/2; 0 gives `dpo_loss`.
        The others as for `dpo_loss`; a soft label p is the mean of this loss over labels, p of which stand.
    """
    chosen = implicit_reward(policy_chosen, reference_chosen, beta)
    rejected = implicit_reward(policy_rejected, reference_rejected, beta)
    # The weights of L(c, r) and L(r, c), (p - e) / (1 - 2e) and (1 - p - e) / (1 - 2e), add up to 1.
    flipped = (1 - probability - label_smoothing) / (1 - 2 * label_smoothing)
    loss = expected_loss(_logistic, chosen - rejected, flipped)
    return PairTerms(loss, chosen.detach(), rejected.detach())


def _logistic(gap: Tensor) -> Tensor:
    return -F.logsigmoid(gap)
