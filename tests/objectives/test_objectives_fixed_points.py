"""Where losses on pairs come to, on so few completions that the policy and every pair can be written down."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prefloop.objectives.completions import PairTerms
from prefloop.objectives.dpo import dpo_loss, robust_dpo_loss
from prefloop.objectives.hinge import hinge_loss
from prefloop.objectives.ipo import ipo_loss

BETA = 0.5
REWARD = torch.tensor([1.0, -0.5, 0.2, 2.0, 0.0], dtype=torch.float64)
REFERENCE = torch.log_softmax(torch.tensor([0.3, 1.0, -0.4, -1.0, 0.6], dtype=torch.float64), dim=0)
FIRST, SECOND = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
# Bradley-Terry: how often a rater with this reward prefers the first of each ordered pair.
PREFERRED = torch.sigmoid(REWARD[FIRST] - REWARD[SECOND])
OPTIMUM = torch.log_softmax(REFERENCE + REWARD / BETA, dim=0)


def slope(loss: Callable[..., PairTerms], at: Tensor, probability: Tensor, **options: float) -> float:
    """Greatest slope, in the logits, of the mean loss over all pairs at a policy."""
    logits = at.clone().requires_grad_()
    policy = torch.log_softmax(logits, dim=0)
    columns = policy[FIRST], policy[SECOND], REFERENCE[FIRST], REFERENCE[SECOND]
    loss(*columns, beta=BETA, probability=probability, **options).loss.mean().backward()
    assert logits.grad is not None
    return logits.grad.abs().max().item()


def test_dpo_rests_at_the_policy_that_reward_and_kl_are_best_for() -> None:
    assert slope(dpo_loss, OPTIMUM, PREFERRED) < 1e-15
    assert slope(dpo_loss, REFERENCE, PREFERRED) > 1e-2
    assert slope(hinge_loss, OPTIMUM, PREFERRED) > 1e-2


def test_robust_dpo_rests_there_in_spite_of_flipped_labels() -> None:
    flips = 0.2
    seen = (1 - flips) * PREFERRED + flips * (1 - PREFERRED)
    assert slope(robust_dpo_loss, OPTIMUM, seen, label_smoothing=flips) < 1e-15
    assert slope(dpo_loss, OPTIMUM, seen) > 1e-2
    assert slope(dpo_loss, OPTIMUM, seen, label_smoothing=flips) > 1e-2


def test_ipo_rests_where_preference_instead_of_reward_is_best() -> None:
    # pi proportional to pi_ref exp(p(y preferred to others) / tau) (Azar et al. 2024, eq. 7).
    often = PREFERRED.view(5, 5).mean(dim=1)
    assert slope(ipo_loss, torch.log_softmax(REFERENCE + often / BETA, dim=0), PREFERRED) < 1e-15
    assert slope(ipo_loss, OPTIMUM, PREFERRED) > 1e-2


@pytest.mark.parametrize("gap", [0.0, 3.0, 30.0])
def test_labels_without_contradiction_drive_dpo_on_and_stop_ipo(gap: float) -> None:
    chosen = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    (forward,) = torch.autograd.grad(dpo_loss(chosen, zero, zero, zero, beta=BETA).loss.sum(), chosen)
    assert forward.item() < 0
    (back,) = torch.autograd.grad(ipo_loss(chosen, zero, zero, zero, beta=BETA).loss.sum(), chosen)
    assert (back.item() < 0) == (gap < 1 / (2 * BETA))
