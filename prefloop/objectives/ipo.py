"""Identity preference optimisation: the gap of log-ratios is brought to a target, not driven to infinity."""

from __future__ import annotations

from torch import Tensor

from prefloop.objectives.completions import PairTerms, expected_loss, implicit_reward


def ipo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    probability: Tensor | float = 1.0,
) -> PairTerms:
    """(h - 1 / (2 beta))^2, h = (log pi_c - ref_c) - (log pi_r - ref_r) (Azar et al. 2024, eq. 17).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: (P,) float, log-probs of whole
            completions. The paper's y is a whole completion, so its theory (a finite gap even where labels
            are never contradicted) is about SUMS over tokens; the common implementation takes MEANS a token
            (`mean_logprob`), and the target is then a gap in nats a token.
        beta: the paper's tau.
        probability: scalar or (P,), a soft label p; the best gap is then (2p - 1) / (2 beta).
    """
    chosen = implicit_reward(policy_chosen, reference_chosen, beta)
    rejected = implicit_reward(policy_rejected, reference_rejected, beta)
    gap = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    loss = expected_loss(lambda h: (h - 1 / (2 * beta)) ** 2, gap, 1 - probability)
    return PairTerms(loss, chosen.detach(), rejected.detach())
