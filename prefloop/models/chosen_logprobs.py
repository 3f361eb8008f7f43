"""Log-probs of chosen tokens, a few rows of logits at a time.

At a vocabulary of 32,000 the logits of a batch are hundreds of megabytes, and whoever takes their log-softmax
whole writes and reads them several times over, in float32 beside the model's own type. Rows taken a few at a
time stay in the processor's cache, and only the logits and their gradient are ever kept whole. Each row is
computed by the same kernels as before, so results are the same bits.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WHOLE = 2**21
"""Logits up to which the whole table is taken at once: it stays in cache by itself."""
AT_ONCE = {"cpu": 2**19, "cuda": 2**26}
"""Logits of the rows that are taken together; on a GPU it bounds the memory alone."""


def chosen_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-prob of one token in each row's distribution.

    Args:
        logits: (N, V), of any float type; the caller's own, and used for nothing else after a backward pass,
            which writes their gradient into their memory. tokens: (N,) int64.

    Returns:
        (N,) float32, or float64 of logits in float64.
    """
    if logits.numel() <= WHOLE:
        return _of_rows(logits, tokens)
    return cast(Tensor, _Chosen.apply(logits, tokens))  # type: ignore[no-untyped-call]


def entropies(logits: Tensor) -> Tensor:
    """Entropy of each row's distribution, without gradient: (N, V) -> (N,) float32 (nats)."""
    with torch.no_grad():
        found = [-(x.exp() * x).sum(dim=-1) for x in map(_log_softmax, logits.split(rows_at_once(logits)))]
        return torch.cat(found)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _of_rows(logits: Tensor, tokens: Tensor) -> Tensor:
    return _log_softmax(logits).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def rows_at_once(logits: Tensor) -> int:
    """How many rows of (N, V) are taken together."""
    return max(AT_ONCE.get(logits.device.type, WHOLE) // logits.shape[-1], 1)


class _Chosen(torch.autograd.Function):
    """`_of_rows`, whose backward pass takes the softmax anew and keeps its result where the logits were."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(logits, tokens)
        ctx.spent = False
        size = rows_at_once(logits)
        parts = zip(logits.split(size), tokens.split(size), strict=True)
        return torch.cat([_of_rows(own, chosen) for own, chosen in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.spent:
            raise RuntimeError("the logits gave way to their gradient: backward() runs once on them")
        ctx.spent = True
        logits, tokens = ctx.saved_tensors
        size = rows_at_once(logits)
        for own, chosen, upstream in zip(*(x.split(size) for x in (logits, tokens, gradient)), strict=True):
            logprobs = _log_softmax(own)
            at_chosen = torch.zeros_like(logprobs).scatter_(-1, chosen.unsqueeze(-1), upstream.unsqueeze(-1))
            own.copy_(torch._log_softmax_backward_data(at_chosen, logprobs, -1, logprobs.dtype))
        return logits, None
