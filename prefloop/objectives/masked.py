"""Means and variances over the positions where a mask is True."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` (same shape, bool) is True; 0, never NaN, where nothing is.

    Values under the mask are replaced before the sum, so that a NaN there cannot leak.
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() / mask.sum().clamp(min=1)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sums over the last dimension where `mask` is True: (B, T) -> (B,)."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(dim=-1)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Brings `values` to unit variance over the True positions; the mean goes to 0 or, without shift, stays.

    The variance is the unbiased one (Bessel); masked positions come out as 0.
    """
    count = mask.sum()
    mean = masked_mean(values, mask)
    squares = torch.where(mask, (values - mean) ** 2, torch.zeros_like(values)).sum()
    scale = torch.rsqrt(squares / (count - 1).clamp(min=1) + 1e-8)
    whitened = (values - mean) * scale
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, torch.zeros_like(values))
