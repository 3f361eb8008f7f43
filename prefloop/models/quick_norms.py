"""RMS norms on a CPU with fewer passes over memory than autograd makes of their definition.

    y = w x s,    s = (mean(x^2) + eps)^(-1/2)                              (Zhang and Sennrich 2019, eq. 4)

With g = dL/dy and n = x s, dL/dw sums g n over rows, and dL/dx = s (g w - n mean(g w n)).

Under autocast x may be bf16 while w is float32. Then everything here is float32, as y is by transformers' own
forward, too, which rounds n to bf16 in between and multiplies numbers of two types, slowly. Where y goes into
linear layers alone it is rounded for them once: under autocast each would do that for itself.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        square: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = gradient * normed
        mean = (product @ weight).div_(x.shape[-1]).unsqueeze(-1)
        towards = (gradient * weight).addcmul_(normed, mean, value=-1.0).mul_(scale)
        return towards, product.flatten(0, -2).sum(dim=0), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., D) and (D,) -> (..., D), all of one floating type."""
    normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


def _forward(norm: Any, hidden_states: Tensor) -> Tensor:
    """What stands in for a norm's own forward, which computes what is elsewhere or of another precision."""
    kind, own_kind = hidden_states.dtype, norm.weight.dtype
    full = kind == own_kind and kind in (torch.float32, torch.float64)
    mixed = kind == torch.bfloat16 and own_kind == torch.float32
    if (full or mixed) and hidden_states.device.type == "cpu":
        return rms_norm(hidden_states.to(own_kind), norm.weight, _eps(norm))
    own: Tensor = type(norm).forward(norm, hidden_states)
    return own


def _forward_rounded(norm: Any, hidden_states: Tensor) -> Tensor:
    """Likewise, of a norm that `_before_linear` gives."""
    normed = _forward(norm, hidden_states)
    if normed.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return normed.to(torch.get_autocast_dtype("cpu"))
    return normed


def quicken_norms(model: nn.Module) -> int:
    """Lets a model's RMS norms compute as `rms_norm` does; other norms, and variants, stay as they are.

    Returns:
        How many there are.
    """
    norms = [module for module in model.modules() if _is_plain(module)]
    rounded = {norm for block in model.modules() for norm in _before_linear(block)}
    for norm in norms:
        forward = _forward_rounded if norm in rounded else _forward
        norm.forward = MethodType(forward, norm)  # deepcopy binds a method to the copy
    return len(norms)


def _before_linear(block: Any) -> list[nn.Module]:
    """The norms of a block whose results go into linear layers alone: before attention, and before a
    feed-forward layer that routes nothing to experts."""
    norms = {name for name, part in block.named_children() if type(part).__name__.endswith("RMSNorm")}
    mlp, attention = getattr(block, "mlp", None), getattr(block, "self_attn", None)
    if norms != {"input_layernorm", "post_attention_layernorm"}:
        return []
    if not all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")):
        return []
    if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")):
        return []
    return [block.input_layernorm, block.post_attention_layernorm]


def _eps(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None) or 0.0)


@torch.no_grad()
def _is_plain(module: Any) -> bool:
    """True for a norm of a transformers model that gives what `rms_norm` gives of a few numbers."""
    weight = getattr(module, "weight", None)
    if (
        not type(module).__name__.endswith("RMSNorm")
        or weight is None
        or weight.ndim != 1
        or not _eps(module)
    ):
        return False
    tried = torch.linspace(-2.0, 3.0, 2 * len(weight), dtype=weight.dtype, device=weight.device).view(2, -1)
    try:
        given = type(module).forward(module, tried)
    except (RuntimeError, TypeError):
        return False  # it takes more than its input
    return torch.allclose(given, rms_norm(tried, weight, _eps(module)), rtol=1e-5, atol=1e-6)
