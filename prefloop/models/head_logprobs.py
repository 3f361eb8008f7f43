"""Log-probs of chosen tokens right from hidden states, with a backward pass that never looks at logits again.

    z = W h;   p = softmax(z);   log p(t) = z_t - max z + log max p where p(t) is too small for a logarithm
    q = p - e_t;   dh = -u W^T q;   dW = -q (u h)^T                                (u: the upstream gradient)

q takes the place of the logits in the forward pass, where p is at hand; u is put on the hidden states, which
are some hundred numbers a token and not a vocabulary's. Rows are taken a few at a time, as in
`prefloop.models.chosen_logprobs`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

from prefloop.models.chosen_logprobs import chosen_logprobs, entropies, rows_at_once
from prefloop.models.heads import read, reads_in_float32
from prefloop.models.plain_linear import is_plain_linear
from prefloop.models.ragged import STEADY

LEAST = 1e-30
"""Chances below it are not far above the least that float32 tells from 0."""


def head_logprobs(
    head: nn.Module, states: Tensor, tokens: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of one token in the distribution that an output layer makes of each hidden state.

    Args:
        head: the output layer, by itself or in an adapter. states: (N, D). tokens: (N,) int64.
        temperature: logits are divided by it.
        with_entropy: give the distributions' entropies, too.

    Returns:
        (N,) float32, or float64 of a head in float64; entropies (N,) likewise, detached (nats), or None.
    """
    if not is_plain_linear(head):
        logits = read(head, states)
        if temperature != 1.0:
            logits = logits.float() / temperature
        picked = chosen_logprobs(logits, tokens)
        return picked, entropies(logits) if with_entropy else None
    device = states.device.type
    kind = head.weight.dtype
    if torch.is_autocast_enabled(device) and not reads_in_float32(head, states.device):
        kind = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        picked, spread = _HeadLogprobs.apply(  # type: ignore[no-untyped-call]
            states.to(kind), head.weight, head.bias, tokens, kind, temperature, with_entropy
        )
    return picked, spread


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        kind: torch.dtype,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        lower, count = weight.to(kind), len(states)
        if kind == torch.bfloat16 and states.device.type == "cpu":
            states = pad(states, (0, 0, 0, -count % STEADY))
        logits = linear(states, lower, None if bias is None else bias.to(kind))
        size, learned = rows_at_once(logits), any(ctx.needs_input_grad)
        full = torch.promote_types(kind, torch.float32)
        found, spread = list[Tensor](), list[Tensor]()
        for own, chosen in zip(logits[:count].split(size), tokens.split(size), strict=True):
            place = chosen.unsqueeze(-1)
            z = own if temperature == 1.0 else own.to(full) / temperature
            p = torch.softmax(z, dim=-1, dtype=full)
            likely = p.gather(-1, place)
            found.append(_log(likely, z, place, p).squeeze(-1))
            if with_entropy:
                spread.append(torch.special.entr(p).sum(dim=-1))
            if learned:
                own.copy_(p.scatter_add_(-1, place, p.new_full(place.shape, -1.0)))
        if learned:
            ctx.save_for_backward(states, lower, logits)
            ctx.temperature, ctx.kind, ctx.biased = temperature, weight.dtype, bias is not None
        entropy = torch.cat(spread) if with_entropy else None
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return torch.cat(found), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        states, lower, q = ctx.saved_tensors
        count = len(gradient)
        upstream = pad((gradient / -ctx.temperature).to(q.dtype), (0, len(q) - count)).unsqueeze(-1)
        towards_states = (q @ lower).mul_(upstream)[:count] if ctx.needs_input_grad[0] else None
        towards_weight = (q.t() @ (states * upstream)).to(ctx.kind) if ctx.needs_input_grad[1] else None
        towards_bias = (
            (q.t() @ upstream).squeeze(-1).to(ctx.kind) if ctx.biased and ctx.needs_input_grad[2] else None
        )
        return towards_states, towards_weight, towards_bias, None, None, None, None


def _log(likely: Tensor, z: Tensor, place: Tensor, p: Tensor) -> Tensor:
    """Log-probs of the tokens at `place`: (n, 1) chances -> (n, 1)."""
    found = likely.log()
    least = likely < LEAST
    if z.device.type == "cpu" and not bool(least.any()):  # a GPU would be waited for
        return found
    peak = z.amax(dim=-1, keepdim=True)
    return found.where(~least, (z.gather(-1, place) - peak).to(p.dtype) + p.amax(dim=-1, keepdim=True).log())
