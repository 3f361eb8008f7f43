"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A hidden matrix W with gradient G moves by

    M <- mu M + (1 - mu) G,    U = NewtonSchulz((1 - mu) G + mu M),    (Nesterov's momentum)
    W <- W - lr (0.2 sqrt(max(rows, columns)) U + decay W),            (Liu et al. 2025, equation 4)

where U has the singular vectors of what it is made of, and singular values near 1. The factor gives U the
root mean square that AdamW's updates have, about 0.2, so that AdamW's rates and decays serve here, too
(Liu et al. 2025, "Muon is scalable for LLM training", arXiv 2502.16982, section 2.2).

torch.optim.Muon iterates in bf16 wherever it is, which a processor without bf16 instructions emulates, and
takes one matrix after another; here a CPU computes in the matrices' own precision, and matrices of one shape
go through one product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.data.batching import chunks

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of p(s) = a s + b s^3 + c s^5."""
ITERATIONS = 5
"""They take singular values from [0.002, 1] to [0.68, 1.21]."""
RMS = 0.2
STACK_ELEMENTS = 2**26
"""Numbers that are orthogonalised at once, unless a single parameter has more: bounds memory."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """Each matrix U S V^T of a stack with its singular values moved near 1, by Newton-Schulz iterations.

    Args:
        matrices: (K, R, C); R at most C makes the least work.

    Returns:
        (K, R, C), U p^5(S / |S|) V^T with p of `COEFFICIENTS`; 0 of a matrix that is 0. It is bf16 on CUDA,
        elsewhere as precise as `matrices`.
    """
    a, b, c = COEFFICIENTS
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    x = matrices / norms.clamp(min=1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Moves matrices (R, C), and stacks of them (K, R, C): the experts of a layer, say.

    Args:
        matrices: what is moved. lr: rate, as AdamW would take it. weight_decay: decoupled, as AdamW's.

    Raises:
        ValueError: something else than matrices is given.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"]]
        if wrong := [shape for shape in shapes if len(shape) not in (2, 3)]:
            raise ValueError(
                f"Muon moves matrices and stacks of matrices, got a parameter of shape {wrong[0]}"
            )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves each parameter that has a gradient."""
        for group in self.param_groups:
            for alike in _stacks(p for p in group["params"] if p.grad is not None):
                stacked = [_wide(self._momentum(p)) for p in alike]
                updates = orthogonalised(torch.cat(stacked)).split([len(one) for one in stacked])
                for parameter, update in zip(alike, updates, strict=True):
                    rows, columns = parameter.shape[-2:]
                    update = (update.mT if rows > columns else update).reshape(parameter.shape)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * RMS * math.sqrt(max(rows, columns)))

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov's momentum with the parameter's gradient taken in."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return gradient.lerp(state["momentum"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)


def _wide(parameter: Tensor) -> Tensor:
    """(R, C) or (K, R, C) as a stack of matrices that are no taller than wide: orthogonalising the transposed
    gives the transposed."""
    stack = parameter.reshape(-1, *parameter.shape[-2:])
    return stack.mT if stack.shape[-2] > stack.shape[-1] else stack


def _stacks(parameters: Iterable[nn.Parameter]) -> Iterator[Sequence[nn.Parameter]]:
    """Parameters that are orthogonalised together: of one shape, up to transposition, and not too many."""
    alike: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    for p in parameters:
        alike.setdefault((p.numel(), *sorted(p.shape[-2:]), p.dtype, p.device), []).append(p)
    for (size, *_), found in alike.items():
        yield from chunks(found, max(STACK_ELEMENTS // size, 1))
