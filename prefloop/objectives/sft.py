"""Supervised fine-tuning: next-token cross-entropy on the trainable tokens."""

from __future__ import annotations

from torch import Tensor

from prefloop.objectives.masked import masked_sum


def sft_loss(logprobs: Tensor, trainable: Tensor, total: int) -> Tensor:
    """Negative log-likelihood, averaged over the trainable tokens of the whole optimiser step.

    Args:
        logprobs: (B, T) float, log-prob of each token given those before it.
        trainable: (B, T) bool, True where the token is to be learned.
        total: trainable tokens of the whole step, so that micro-batches add up to one mean.

    Returns:
        Scalar. Micro-batches of a step sum to the step's loss.
    """
    return -masked_sum(logprobs, trainable).sum() / max(total, 1)
