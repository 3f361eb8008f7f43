"""Between what sampled a token and what learns from it: how far the two are apart, and its correction."""

from __future__ import annotations

import torch
from torch import Tensor

from prefloop.objectives.kl import LOG_RATIO_LIMIT, k3
from prefloop.objectives.masked import masked_mean


def mismatch(logprobs: Tensor, behaviour: Tensor, mask: Tensor) -> dict[str, float]:
    """How far an engine's log-probs of the tokens that it sampled are from the trainer's.

    Args:
        logprobs: (B, T) float, log pi of the trainer. behaviour: (B, T) float, log pi of the engine.
        mask: (B, T) bool, True on sampled tokens.

    Returns:
        `mismatch_mean` and `mismatch_max`, of |log pi_trainer - log pi_engine| a token (nats), and
        `mismatch_kl`, the k3 estimate of KL(engine || trainer) a token (Schulman 2020; the tokens are the
        engine's samples). All 0 where there is no token.
    """
    # In float32 the estimate of a small KL would be rounding alone.
    delta = torch.where(mask, behaviour.double() - logprobs.double(), 0.0)
    return {
        "mismatch_mean": float(masked_mean(delta.abs(), mask)),
        "mismatch_max": float(delta.abs().max()) if delta.numel() else 0.0,
        "mismatch_kl": float(masked_mean(k3(delta.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)), mask)),
    }


def importance_weights(logprobs: Tensor, behaviour: Tensor, cap: float) -> Tensor:
    """min(pi_trainer / pi_engine, c) of each token: truncated importance sampling (Yao et al. 2025).

    Args:
        logprobs: (B, T) float, under the trainer's policy as it was when the tokens were sampled.
        behaviour: (B, T) float, under the engine that sampled them.
        cap: c, above 0.

    Returns:
        (B, T) float without gradient, 1 where the two agree.
    """
    delta = (logprobs - behaviour).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return delta.exp().clamp(max=cap)
