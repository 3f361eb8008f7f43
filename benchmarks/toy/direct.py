"""Losses of the direct methods in expectation: every pair of responses, weighted by how often it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PairLoss = Callable[..., Tensor]


@dataclass(frozen=True)
class Pairs:
    """All N^2 ordered pairs.

    Attributes:
        first, second: (N^2,) indices of responses.
        probability: (N^2,) float64, how often a rater prefers the first.
    """

    first: Tensor
    second: Tensor
    probability: Tensor


def all_pairs(reward: Tensor) -> Pairs:
    """Pairs labelled by a Bradley-Terry rater with the given reward, (N,)."""
    index = torch.cartesian_prod(torch.arange(len(reward)), torch.arange(len(reward)))
    first, second = index[:, 0], index[:, 1]
    return Pairs(first, second, torch.sigmoid(reward[first] - reward[second]))


def expected_pair_loss(
    log_policy: Tensor, log_reference: Tensor, log_source: Tensor, pairs: Pairs, loss: PairLoss
) -> Tensor:
    """Mean of a pair loss over pairs whose responses are drawn from a source, (N,) log-probs each.

    Args:
        loss: (log pi first, log pi second, log ref first, log ref second, probability) -> (N^2,).
    """
    weight = (log_source[pairs.first] + log_source[pairs.second]).exp().detach()
    terms = loss(
        log_policy[pairs.first],
        log_policy[pairs.second],
        log_reference[pairs.first],
        log_reference[pairs.second],
        pairs.probability,
    )
    return (weight * terms).sum()
