"""One token a row from a model's logits, by inverting the distribution function at a uniform draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prefloop.config.rollout import SamplingConfig

BLOCK = 64
"""Tokens whose mass is summed first, so that the running sums in float64 are over blocks and within one."""


def draw(logits: Tensor, noise: Tensor, config: SamplingConfig) -> Tensor:
    """The tokens of `draw_with_logprobs`."""
    return draw_with_logprobs(logits, noise, config)[0]


def draw_with_logprobs(logits: Tensor, noise: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Samples one token a row: the first whose cumulative probability exceeds the row's draw.

    Args:
        logits: (B, V) float32. noise: (B,) float64 in [0, 1).

    Returns:
        Tokens (B,) int64; temperature 0 takes the most likely one. Their log-probs (B,) float64 at that
        temperature, before the nucleus cuts; 0 at temperature 0.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1), torch.zeros_like(logits[:, 0], dtype=torch.float64)
    largest = logits.amax(dim=-1, keepdim=True)
    mass = (logits - largest).div_(config.temperature).exp_()
    if config.top_p < 1:
        total = mass.sum(dim=-1, dtype=torch.float64)
        tokens = _inverted(_nucleus(mass, config.top_p), noise)[0]
    else:
        tokens, total = _inverted(mass, noise)
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).double() - largest.double()
    return tokens, chosen.squeeze(-1) / config.temperature - total.log()


def _nucleus(mass: Tensor, top_p: float) -> Tensor:
    """(B, V): a token stays while the mass before it is below top_p of all; the first always does."""
    ordered, indices = mass.sort(dim=-1, descending=True, stable=True)
    summed = ordered.cumsum(dim=-1, dtype=torch.float64)
    outside = summed - ordered >= top_p * summed[:, -1:]
    return torch.zeros_like(mass).scatter_(-1, indices, ordered.masked_fill(outside, 0.0))


def _inverted(mass: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens at which the running sum first exceeds `noise` of the whole, and the whole (B,) float64.

    The block that holds the token is found first, then the token in it; neither is ever one without mass.

    Args:
        mass: (B, V) float32, at least 0, positive somewhere. noise: (B,) float64 in [0, 1).
    """
    rows, vocabulary = mass.shape
    blocks = math.ceil(vocabulary / BLOCK)
    if vocabulary % BLOCK:
        mass = torch.nn.functional.pad(mass, (0, blocks * BLOCK - vocabulary))
    mass = mass.view(rows, blocks, BLOCK)
    before = mass.sum(dim=-1).double().cumsum(dim=-1)
    total = before[:, -1]
    target = (noise.to(total.dtype) * total).unsqueeze(-1)
    block = _first_above(before, target)
    inside = mass.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1).double().cumsum(dim=-1)
    start = torch.where(block > 0, before.gather(-1, (block - 1).clamp(min=0)), 0.0)
    token = _first_above(inside, target - start)
    return (block * BLOCK + token).squeeze(-1).clamp(max=vocabulary - 1), total


def _first_above(summed: Tensor, target: Tensor) -> Tensor:
    """The first place (B, 1) at which running sums (B, N) exceed the target (B, 1).

    Where rounding leaves the target at the last sum or above it, the last place that added anything.
    """
    below = summed[:, -1:].nextafter(summed.new_zeros(1))
    found = torch.searchsorted(summed, torch.minimum(target, below), right=True)
    return found.clamp(max=summed.shape[-1] - 1)  # NaN is above everything
