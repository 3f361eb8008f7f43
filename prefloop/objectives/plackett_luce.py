"""Reward modelling from rankings: Plackett-Luce, one choice of the best of what is left after another."""

from __future__ import annotations

import torch
from torch import Tensor

from prefloop.objectives.bradley_terry import Comparison, compared


def choice_losses(scores: Tensor, ranks: list[int], *, margin: float = 0.0) -> Tensor:
    """-log P(i is chosen from itself and all that rank below it), for each i with one below it.

    P(i | C) = exp(r_i) / sum_{j in C} exp(r_j) (Luce 1959; Plackett 1975 for the whole order). Without ties
    the terms sum to -log of Plackett's probability of the ranking, and K = 2 is Bradley-Terry.

    Tied items do not compete: neither stands in the other's set of choices, so a tie says nothing about its
    own order, and the lowest rank says nothing at all. Each term is the model's own probability of what the
    rater said (a choice does not depend on who else is there); with ties the sum is a composite likelihood.
    Breslow's approximation, which keeps the tied in each other's sets, would pull their scores together.

    Args:
        scores: (K,) float. ranks: K ranks, 0 is best.
        margin: added to the scores of those below: how much better the chosen one ought to be.

    Returns:
        (N,) of the scores' dtype, N the items that have one below them.
    """
    order = torch.tensor(ranks, device=scores.device)
    below = order[None, :] > order[:, None]  # (i, j): j ranks below i
    gaps = (scores[None, :] - scores[:, None] + margin).masked_fill(~below, -torch.inf)
    gaps = gaps[below.any(dim=1)]
    # Itself, at a gap of 0, is among its choices.
    return torch.logsumexp(torch.cat([gaps, gaps.new_zeros(len(gaps), 1)], dim=1), dim=1)


def ranking_loss(
    scores: Tensor, ranks: list[int], *, centering: float = 0.0, margin: float = 0.0, probability: float = 1.0
) -> Comparison:
    """List-wise loss of one prompt: the mean over its choices, so that a prompt counts once.

    Args:
        scores: (K,) float.
        ranks: K ranks, 0 is best; for equal ranks see `choice_losses`.
        centering: weight of (r_i + r_j)^2 over ordered pairs, as with Bradley-Terry.
        margin: see `choice_losses`.
        probability: in [0, 1], a soft label: weight of this ranking; the reversed one has the rest.

    Returns:
        The scalar loss (0 with gradient when all are tied), and counts of rightly ordered pairs, pairs, ties.
    """

    def loss(better: Tensor, worse: Tensor) -> Tensor:
        stands = choice_losses(scores, ranks, margin=margin).mean()
        if probability == 1:
            return stands
        reversed_loss = choice_losses(scores, [-rank for rank in ranks], margin=-margin).mean()
        return probability * stands + (1 - probability) * reversed_loss

    return compared(scores, ranks, loss, centering)
