"""Odds ratio preference optimisation: fine-tuning and preference in one loss, without a reference model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prefloop.objectives.completions import expected_loss


@dataclass(frozen=True)
class ORPOTerms:
    """Each (P,) float: the loss of a pair, with gradient, and its parts, without.

    Attributes:
        nll: negative log-likelihood of the chosen completion a token (nats).
        log_odds_ratio: log of the chosen completion's odds over the rejected one's.
    """

    loss: Tensor
    nll: Tensor
    log_odds_ratio: Tensor


def log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p <= 0, element by element.

    log(1 - p) is taken as log(-expm1(log p)) above p = 1/2 and as log1p(-p) below, so that neither end loses
    digits (Maechler 2012). A p of 1, whose odds are infinite, counts as one rounding error below it.
    """
    logprob = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    near_one = logprob > -math.log(2)
    # Each branch sees arguments of its own side alone: an infinity in the other would make its gradient NaN.
    upper = torch.log(-torch.expm1(torch.where(near_one, logprob, -1.0)))
    lower = torch.log1p(-torch.exp(torch.where(near_one, -1.0, logprob)))
    return logprob - torch.where(near_one, upper, lower)


def orpo_loss(
    chosen: Tensor, rejected: Tensor, *, odds_coef: float, probability: Tensor | float = 1.0
) -> ORPOTerms:
    """-log p_c - lambda log sigmoid(log [odds_c / odds_r]), odds = p / (1 - p) (Hong et al. 2024, eq. 6, 7).

    Args:
        chosen, rejected: (P,) float, MEAN log-probs a token, log p: p is the geometric mean of the tokens'
            probabilities.
        odds_coef: lambda, weight of the odds ratio beside the likelihood.
        probability: scalar or (P,), a soft label: the odds ratio's loss is the mean over labels, p of which
            stand. The likelihood is always the chosen one's.
    """
    ratio = log_odds(chosen) - log_odds(rejected)
    loss = -chosen + odds_coef * expected_loss(lambda x: -F.logsigmoid(x), ratio, 1 - probability)
    return ORPOTerms(loss, -chosen.detach(), ratio.detach())
