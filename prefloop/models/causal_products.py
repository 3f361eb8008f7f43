"""Causal attention on a CPU as batched products, for bf16: scores and softmax in float32, the rest in bf16.

    S = s q k^T, masked;   P = softmax(S);   o = P v
    dv = P^T do;   dP = do v^T;   dS = P * (dP - rowsum(P * dP));   dq = s dS k;   dk = s dS^T q

(Dao et al. 2022, appendix B.2.) torch's own function calls a product of its own for each small block of a
head; here the heads of some rows are one product, in blocks of queries that see no key behind the last of
them. For each new shape of a product machine code is made, so `layout_of` is asked for `steady` shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefloop.models.layout import HeadCells, Layout

QUERIES = 128
"""Of a block."""
HEADS = 24
"""Key heads that are computed at once."""
KEPT = 512
"""Widest rows whose P is kept for the backward pass. Of wider ones it is computed again, so that memory grows
with their length and not with its square."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention of each flat token to those of its sequence up to itself.

    Args:
        query: (1, H, N, D) bf16. key, value: (1, G, N, D) bf16, of which each serves H / G heads.
        scale: factor of the scores.

    Returns:
        (1, N, H, D) bf16; 0 for tokens that stand in no row.
    """
    return cast(Tensor, _Causal.apply(query, key, value, layout, scale))  # type: ignore[no-untyped-call]


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
        places = layout.of_heads(key.shape[1])
        q, k, v = (_by_head(x, places).index_select(0, places.source) for x in (query, key, value))
        found, kept = torch.empty_like(q), list[Tensor]()
        for qs, ks, vs, outs in _parts(places, query.shape[-1], q, k, v, found):
            full = qs.float(), ks.float()
            for rows, keys, mask in _blocks(qs, ks):
                part = _probabilities(*full, rows, keys, mask, scale)
                outs[:, rows].baddbmm_(part, vs[:, keys], beta=0)
                if ks.shape[1] <= KEPT and any(ctx.needs_input_grad):
                    kept.append(part)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.places, ctx.scale, ctx.shape, ctx.widest = places, scale, query.shape, KEPT
        return _collected(found, places, query.shape[2]).view(1, query.shape[2], *query.shape[1::2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        places, scale = ctx.places, ctx.scale
        q, k, v, *saved = ctx.saved_tensors
        kept, size, count = iter(saved), ctx.shape[-1], ctx.shape[2]
        upstream = torch.zeros_like(q)
        given = gradient.reshape(count * places.heads, -1)[: len(places.cells)]
        upstream.index_copy_(0, places.cells, given)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for qs, ks, vs, gs, dqs, dks, dvs in _parts(places, size, q, k, v, upstream, dq, dk, dv):
            wide = ks.shape[1] > ctx.widest
            full = (qs.float(), ks.float()) if wide else (qs, ks)
            for rows, keys, mask in _blocks(qs, ks):
                part = _probabilities(*full, rows, keys, mask, scale) if wide else next(kept)
                towards = torch.bmm(gs[:, rows], vs[:, keys].transpose(1, 2))
                scores = torch._softmax_backward_data(towards, part, -1, part.dtype)
                dqs[:, rows].baddbmm_(scores, ks[:, keys], beta=0, alpha=scale)
                dks[:, keys].baddbmm_(scores.transpose(1, 2), qs[:, rows], alpha=scale)
                dvs[:, keys].baddbmm_(part.transpose(1, 2), gs[:, rows])
        towards_query = _collected(dq, places, count)
        towards_key, towards_value = (_gathered(x, places, count) for x in (dk, dv))
        return (
            *(
                x.view(count, -1, size).transpose(0, 1).unsqueeze(0)
                for x in (towards_query, towards_key, towards_value)
            ),
            None,
            None,
        )


def _by_head(states: Tensor, places: HeadCells) -> Tensor:
    """(1, H, N, D) -> (N * G, H / G * D)."""
    count = states.shape[2]
    return states[0].transpose(0, 1).reshape(count * places.heads, -1)


def _parts(places: HeadCells, size: int, *cells: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """For some heads of a group at a time: (C * G, R * D) each -> (n, W * R, D) each.

    The queries of heads that share a key follow each other, token by token.
    """
    first = 0
    for count, width in places.shapes:
        end = first + count * width
        for one in range(first, end, HEADS * width):
            own = slice(one, min(one + HEADS * width, end))
            yield tuple(x[own].view((own.stop - one) // width, -1, size) for x in cells)
        first = end


def _blocks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Queries of a block, the keys that they see at most, and what their scores begin with."""
    width = keys.shape[1]
    shared = queries.shape[1] // width
    for first in range(0, width, QUERIES):
        end = min(first + QUERIES, width)
        yield slice(first * shared, end * shared), slice(0, end), _mask(first, end, shared)


def _mask(first: int, end: int, shared: int) -> Tensor:
    """For queries `first` to `end`, each `shared` times: ((end - first) * shared, end) float32, -inf on keys
    behind them."""
    return (_kept_mask if end <= KEPT else _made_mask)(first, end, shared)


def _made_mask(first: int, end: int, shared: int) -> Tensor:
    ahead = torch.arange(end) > torch.arange(first, end).unsqueeze(1)
    return torch.zeros(ahead.shape).masked_fill(ahead, float("-inf")).repeat_interleave(shared, dim=0)


_kept_mask = cache(_made_mask)
"""The same ones come in every layer and step; those of wide rows would take as much memory as scores do."""


def _probabilities(
    queries: Tensor, keys: Tensor, rows: slice, seen: slice, mask: Tensor, scale: float
) -> Tensor:
    """P of a block: float32 queries and keys -> (n, block, keys) bf16."""
    scores = torch.baddbmm(mask, queries[:, rows], keys[:, seen].transpose(1, 2), alpha=scale)
    return torch.softmax(scores, dim=-1).to(torch.bfloat16)


def _collected(cells: Tensor, places: HeadCells, count: int) -> Tensor:
    """What stands where the flat tokens are queries: (C * G, F) -> (N * G, F); 0 for those that are none."""
    found = cells.index_select(0, places.cells)
    missing = count * places.heads - len(found)
    return torch.nn.functional.pad(found, (0, 0, 0, missing)) if missing else found


def _gathered(cells: Tensor, places: HeadCells, count: int) -> Tensor:
    """The sum over each flat token's cells, likewise; on padding cells are 0."""
    if not places.repeated:
        return _collected(cells, places, count)
    sums = cells.new_zeros((count * places.heads, cells.shape[1]), dtype=torch.float32)
    return sums.index_add_(0, places.source, cells.float()).to(cells.dtype)
