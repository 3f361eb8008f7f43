"""Labels of online DPO: which of two fresh completions is better (Guo et al. 2024, arXiv 2402.04792)."""

from __future__ import annotations

import torch
from torch import Tensor


def preference(scores: Tensor, labels: str, draws: Tensor | None = None) -> Tensor:
    """Probability with which the first completion of a pair counts as the better one: (P, 2) -> (P,) float.

    With "soft" or "sampled" labels and completions of the policy itself, the loss of dpo.py is lowest at
    pi_ref exp(score / beta), the optimum of E[score] - beta KL; with "hard" ones it depends on order alone.

    Args:
        scores: (P, 2) float.
        labels: "hard": 1, 0, or 1/2 for equal scores; "soft": sigmoid(first - second), Bradley-Terry's;
            "sampled": 1 or 0, drawn with that probability.
        draws: (P,) in [0, 1), for "sampled".
    """
    gap = scores[:, 0] - scores[:, 1]
    if labels == "hard":
        return 0.5 * (1 + gap.sign())
    probability = torch.sigmoid(gap)
    if labels == "soft":
        return probability
    if draws is None:
        raise ValueError("sampled labels need draws")
    return (draws < probability).to(scores.dtype)
