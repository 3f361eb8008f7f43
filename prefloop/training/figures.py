"""Figures of a step: they stay where they are computed, and are read all at once when it is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeGuard

import torch
from torch import Tensor

Figures = Mapping[str, Tensor | float]
"""Numbers and scalar tensors by name."""


def share(values: Tensor, count: float) -> Tensor:
    """The sum of some values over `count`: a float64 scalar on their device, without gradient."""
    return values.detach().sum().double() / count


def totals(shares: Iterable[Figures]) -> dict[str, float]:
    """Figures added up by name, in the order of the shares.

    Reading a tensor waits for the GPU that computes it; all of a GPU's are read in one go.
    """
    entries = [(name, value) for figures in shares for name, value in figures.items()]
    far = [value.detach().double() for _, value in entries if _is_far(value)]
    arrived = iter(torch.stack(far).tolist() if far else [])
    sums: dict[str, float] = {}
    for name, value in entries:
        sums[name] = sums.get(name, 0.0) + (next(arrived) if _is_far(value) else float(value))
    return sums


def _is_far(value: Tensor | float) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.device.type != "cpu"
