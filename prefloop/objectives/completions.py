"""What losses on whole completions share: implicit rewards, labels that may be wrong, means a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PairTerms:
    """Each (P,) float: the loss of a pair, with gradient, and the rewards it compares, without."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


def implicit_reward(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """beta (log pi - log pi_ref): the reward whose optimal policy is pi (Rafailov et al. 2023, eq. 5, up to a
    constant of the prompt).

    Args:
        policy, reference: (P,) float, log-probs of the same completions.
    """
    return beta * (policy - reference)


def expected_loss(loss: Callable[[Tensor], Tensor], gap: Tensor, flipped: Tensor | float) -> Tensor:
    """(1 - f) loss(gap) + f loss(-gap): a pair's loss where its label is the wrong way round with weight f.

    Args:
        loss: of gaps, (P,) -> (P,).
        gap: (P,) float, by how much the chosen completion is ahead.
        flipped: scalar or (P,); 0 trusts the label.
    """
    return (1 - flipped) * loss(gap) + flipped * loss(-gap)


def mean_logprob(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Log-prob a token: (B,) float sums and (B,) token counts -> (B,); 0 for a completion without a token."""
    return logprobs / lengths.clamp(min=1)
