"""The way into attention with fewer products and fewer passes over memory than a model's own code makes.

Queries, keys and values are projections of one input: here one product of joined weights, whose backward pass
adds up what the three give the input by itself. Rotation (Su et al. 2021, eq. 34, in halves as Llama has it)

    y1 = x1 cos - x2 sin;   y2 = x2 cos + x1 sin
    dx1 = dy1 cos + dy2 sin;   dx2 = dy2 cos - dy1 sin

goes over queries and keys five times in either direction, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefloop.models.plain_linear import is_plain_linear

_QUICK: ContextVar[bool] = ContextVar("quick", default=False)
"""Whether this thread's pass goes this way."""


@contextmanager
def quickly(trunk: Any) -> Iterator[None]:
    """Within it the attention of a trunk that `can_be_quick` goes this way in this thread's passes."""
    for block in trunk.layers:
        attention = block.self_attn
        attention.forward = MethodType(_forward, attention)  # it stays; deepcopy binds a method to the copy
    token = _QUICK.set(True)
    try:
        yield
    finally:
        _QUICK.reset(token)


def _forward(attention: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """What stands in for an attention's own forward, which it calls unless a layout says who asks whom and
    everybody asks."""
    layout = kwargs.get("layout")
    if args or not _QUICK.get() or layout is None or layout.asked is not None:
        return cast(tuple[Tensor, Tensor | None], type(attention).forward(attention, *args, **kwargs))
    hidden, (cos, sin) = kwargs["hidden_states"], kwargs["position_embeddings"]
    query, key, value = (
        states.unflatten(-1, (-1, attention.head_dim))
        for states in _projected(hidden, [attention.q_proj, attention.k_proj, attention.v_proj])
    )
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = (rotated(states, cos.unsqueeze(2), sin.unsqueeze(2)) for states in (query, key))
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    found, _ = attend(
        attention,
        *(states.transpose(1, 2) for states in (query, key, value)),
        None,
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
        layout=layout,
    )
    projected: Tensor = attention.o_proj(found.flatten(2))
    return projected, None


def _projected(x: Tensor, layers: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Each layer of (..., D)."""
    weights: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    joined: Tensor = linear(x, torch.cat(weights), torch.cat(biases) if biases else None)
    found: Sequence[Tensor] = joined.split([layer.out_features for layer in layers], dim=-1)
    return found


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        full = x.to(torch.promote_types(x.dtype, cos.dtype))
        found, half = full * cos, x.shape[-1] // 2
        found[..., :half].addcmul_(full[..., half:], sin[..., :half], value=-1.0)
        found[..., half:].addcmul_(full[..., :half], sin[..., half:])
        return found.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        full = gradient.to(torch.promote_types(gradient.dtype, cos.dtype))
        towards, half = full * cos, gradient.shape[-1] // 2
        towards[..., :half].addcmul_(full[..., half:], sin[..., half:])
        towards[..., half:].addcmul_(full[..., :half], sin[..., :half], value=-1.0)
        return towards.to(gradient.dtype), None, None


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys turned by their positions.

    Args:
        x: (..., H, D) float. cos, sin: (..., 1, D); the wider of their types is computed in.

    Returns:
        (..., H, D) of x's type.
    """
    return cast(Tensor, _Rotated.apply(x, cos, sin))  # type: ignore[no-untyped-call]


def has_the_parts(trunk: Any) -> bool:
    """True for a trunk whose blocks have an attention of Llama's kind, as far as its parts tell."""
    blocks = getattr(trunk, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        return False
    return all(_has_the_parts(getattr(block, "self_attn", None)) for block in blocks) and not any(
        getattr(block, "gradient_checkpointing", False) for block in blocks
    )


def _has_the_parts(attention: Any) -> bool:
    layers = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    return (
        all(is_plain_linear(layer) for layer in layers)
        and len({layer.bias is None for layer in layers if layer is not None}) == 1
        and isinstance(getattr(attention, "o_proj", None), nn.Module)
        and isinstance(getattr(attention, "scaling", None), float)
        and isinstance(getattr(attention, "head_dim", None), int)
        and hasattr(attention, "attention_dropout")
        and hasattr(attention, "q_norm") == hasattr(attention, "k_norm")
        and getattr(vars(attention).get("forward"), "__func__", _forward) is _forward
    )
