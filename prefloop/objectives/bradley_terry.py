"""Reward modelling from comparisons: Bradley-Terry over all pairs of a ranking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prefloop.objectives.pairs import pair_indices


@dataclass(frozen=True)
class Comparison:
    """Loss and counts of one ranking."""

    loss: Tensor
    correct: Tensor
    pairs: int
    ties: int


def pairwise_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0, probability: Tensor | float = 1.0
) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected - margin) for each pair (Ouyang et al. 2022, eq. 1, with K = 2).

    Args:
        chosen, rejected: (P,) float scores.
        margin: (P,) or scalar, how much better the chosen one ought to score (Touvron et al. 2023, eq. 2).
        probability: (P,) or scalar in [0, 1], a soft label: the share of raters who prefer the chosen one.

    Returns:
        (P,) float.
    """
    gap = chosen - rejected - margin
    return -(probability * F.logsigmoid(gap) + (1 - probability) * F.logsigmoid(-gap))


def centre(better: Tensor, worse: Tensor, weight: float) -> Tensor:
    """weight * mean (r_i + r_j)^2 over pairs, which keeps scores near 0 (Eisenstein et al. 2023): scalar."""
    return weight * ((better + worse) ** 2).mean()


def ranking_loss(
    scores: Tensor, ranks: list[int], *, centering: float = 0.0, margin: float = 0.0, probability: float = 1.0
) -> Comparison:
    """K-wise loss of one prompt: the mean over its K-choose-2 pairs, so that a prompt counts once.

    InstructGPT (Ouyang et al. 2022, eq. 1); each completion is encoded once and enters all
    its pairs.

    Args:
        scores: (K,) float.
        ranks: K ranks, 0 is best, equal ranks are ties: left out of the loss and counted.
        centering: weight of (r_i + r_j)^2, see `centre`.
        margin, probability: see `pairwise_loss`; they apply to every pair of this ranking.

    Returns:
        The scalar loss (0 with gradient when all are tied), and counts of rightly ordered pairs, pairs, ties.
    """

    def loss(better: Tensor, worse: Tensor) -> Tensor:
        return pairwise_loss(better, worse, margin=margin, probability=probability).mean()

    return compared(scores, ranks, loss, centering)


def compared(
    scores: Tensor, ranks: list[int], loss: Callable[[Tensor, Tensor], Tensor], centering: float
) -> Comparison:
    """A ranking's loss and counts.

    Args:
        scores, ranks, centering: as for `ranking_loss`.
        loss: from the (P,) scores of better and worse completions, pair by pair, to a scalar.
    """
    pairs, ties = pair_indices(ranks)
    if not pairs:
        return Comparison(scores.sum() * 0.0, torch.zeros((), device=scores.device), 0, ties)
    better = scores[[i for i, _ in pairs]]
    worse = scores[[j for _, j in pairs]]
    total = loss(better, worse)
    if centering:
        total = total + centre(better, worse, centering)
    return Comparison(total, (better > worse).sum(), len(pairs), ties)
