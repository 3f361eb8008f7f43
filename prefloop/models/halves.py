"""Two halves of a batch at a time on a CPU, in a thread each.

An operation that two cores share ends when the slower one does, and between two operations, or in a small
one, a core waits. Halves meet once a pass. Which rows are in which half follows from the rows alone, and
their gradients are added in one order, so that the threads leave no trace in a result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefloop.models.adapters import plain
from prefloop.models.ragged import attending, narrows

T = TypeVar("T")

TOKENS = 256
"""Least tokens of a half; smaller batches go in one pass."""
WEIGHTS = 2**24
"""Most weights of a model: a half's gradients are held beside the other's until they are added."""


def halves(trunk: Any, lengths: Sequence[int]) -> list[list[int]] | None:
    """Rows in two halves, alike in their sum of lengths and in what lengths they have; None where a pass of
    all of them is as good.

    Args:
        trunk: one that `reads_flat`. lengths: tokens of each row.

    Returns:
        Indices into `lengths`.
    """
    if len(lengths) < 2 or sum(lengths) < 2 * TOKENS or not narrows(trunk):
        return None
    if sum(p.numel() for p in trunk.parameters()) > WEIGHTS:
        return None
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    # Of each four the shortest and the longest, and the two between.
    return [order[::4] + order[3::4], order[1::4] + order[2::4]]


def side_by_side(model: Any, passes: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """What one pass gives, or two at the same time.

    Args:
        model: whose weights are learned. passes: two of rows in `halves`; each enters the contexts it needs.
    """
    if len(passes) == 1:
        return [passes[0]()]
    # What is set on the trunk for a pass must not be taken back while the other goes on.
    with attending(plain(model).base_model):
        learned = [p for p in model.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
        if not learned:
            return together(passes)
        found: tuple[Tensor, ...] = _Halves.apply(passes, *learned)  # type: ignore[no-untyped-call]
        return list(found)


class _Halves(torch.autograd.Function):
    """The passes' outputs as functions of the weights, each with a graph of its own behind it."""

    @staticmethod
    def forward(
        ctx: Any, passes: Sequence[Callable[[], Tensor]], *learned: nn.Parameter
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            ctx.outcomes = together(passes)
        ctx.learned = learned
        return tuple(one.detach() for one in ctx.outcomes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.outcomes is None:
            raise RuntimeError("backward() runs once on two halves")
        outcomes, ctx.outcomes = ctx.outcomes, None

        def of(outcome: Tensor, gradient: Tensor) -> list[Tensor | None]:
            if not outcome.requires_grad:
                return [None] * len(ctx.learned)
            return list(torch.autograd.grad(outcome, ctx.learned, gradient, allow_unused=True))

        one, other = together([partial(of, *pair) for pair in zip(outcomes, gradients, strict=True)])
        one.reverse()
        other.reverse()
        # Each pair is let go when it is added: beside the sums there are never more than two of a weight.
        return None, *(_sum(one.pop(), other.pop()) for _ in ctx.learned)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other


def together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What two calls return, from a thread each with half of torch's threads; with a single one in turn.

    Gradients are recorded in both where they are here. What a call raises is raised when both have ended.
    """
    threads, recorded = torch.get_num_threads(), torch.is_grad_enabled()
    if threads < 2:
        return [call() for call in calls]
    one, other = calls

    def beside() -> T:
        torch.set_num_threads(threads // 2)
        with torch.set_grad_enabled(recorded):
            return other()

    torch.set_num_threads(threads // 2)
    future = _beside(os.getpid()).submit(beside)
    try:
        first = one()
    finally:
        wait([future])
        torch.set_num_threads(threads)
    return [first, future.result()]


@cache
def _beside(process: int) -> ThreadPoolExecutor:
    """The second thread of this process; a fork has none of its parent's."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"prefloop-half-{process}")
