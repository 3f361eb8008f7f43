"""Linear layers that are no more than their weights."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import nn


def is_plain_linear(layer: Any) -> TypeGuard[nn.Linear]:
    """True for a linear layer whose weights can be used without calling it."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )
