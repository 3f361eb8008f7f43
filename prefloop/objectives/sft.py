"""Supervised fine-tuning: next-token cross-entropy on the trainable tokens."""

from __future__ import annotations

import math

from torch import Tensor

from prefloop.objectives.masked import masked_sum


def sft_loss(logprobs: Tensor, trainable: Tensor, total: int, weights: Tensor | None = None) -> Tensor:
    """Negative log-likelihood, averaged over the trainable tokens of the whole optimiser step.

    Args:
        logprobs: (B, T) float, log-prob of each token given those before it.
        trainable: (B, T) bool, True where the token is to be learned.
        total: trainable tokens of the whole step, so that micro-batches add up to one mean.
        weights: (B, T) float, what a token counts; None counts each 1. For the mean over sequences of each
            one's mean over its tokens: 1 / (trainable tokens of its sequence), and `total` = sequences.

    Returns:
        Scalar. Micro-batches of a step sum to the step's loss.
    """
    if weights is not None:
        logprobs = logprobs * weights
    return -masked_sum(logprobs, trainable).sum() / max(total, 1)


def neftune_noise(uniform: Tensor, alpha: float) -> Tensor:
    """Noise on a sequence's input embeddings (NEFTune: Jain et al. 2023, arXiv 2310.05914, algorithm 1).

    Args:
        uniform: (L, d) float, uniform in [0, 1), for the L tokens of the sequence.
        alpha: scale; the noise is uniform in [-1, 1] times alpha / sqrt(L d).

    Returns:
        (L, d), of the type of `uniform`; its Euclidean norm is about alpha / sqrt(3).
    """
    length, width = uniform.shape
    return (2.0 * uniform - 1.0) * (alpha / math.sqrt(length * width))
