"""Passes in lockstep: processes that each hold a shard of the weights can go through the model only together.

A pass gathers a block's weights from all processes, so each has to make as many passes as the others, in the
same order, whatever its share of a step is: fewer micro-batches, differently cut ones, or none. What it does
next a process therefore tells the others: a forward pass of which trunk, a backward pass, or nothing more.
The greatest of what they want is done by all; whoever wanted something else makes an idle pass of one token,
whose outputs enter its next backward pass times 0, so that gradients stay the exact sum. Nothing has to be
counted beforehand, and no training needs to know.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prefloop.models.forward import precision_context

DONE, BACKWARD, FORWARD = 0, 1, 2
"""What a process wants, as a number of which the greatest wins. Forward passes are FORWARD + 2 * trunk, and
1 more with gradient: while one process has a forward pass to make before its backward pass, all do."""


class Lockstep:
    """The passes of this process among those of the others.

    Args:
        group: processes that answer each other on the CPU. precision: "fp32" or "bf16", of passes.
    """

    def __init__(self, group: Any, precision: str) -> None:
        self.group, self.precision = group, precision
        self._trunks: list[nn.Module] = []
        self._hooks: list[Any] = []
        self._idle: list[Tensor] = []
        self._within = False

    @property
    def active(self) -> bool:
        """True while a trunk's weights are sharded."""
        return bool(self._trunks)

    def watch(self, trunk: nn.Module) -> None:
        """From now on this trunk's passes are made together; all processes call it in the same order."""
        self._trunks.append(trunk)
        self._hooks.append(trunk.register_forward_pre_hook(self._before))

    def leave(self, trunk: nn.Module) -> None:
        """This trunk's passes are a process's own again, if they were not."""
        if trunk in self._trunks:
            number = self._trunks.index(trunk)
            del self._trunks[number]
            self._hooks.pop(number).remove()
            self._idle.clear()

    def backward(self, loss: Tensor) -> None:
        """The backward pass of `loss`, which all make."""
        self._until(BACKWARD)
        self._back(loss)

    def settle(self) -> None:
        """Makes idle passes until no process wants another."""
        if self.active:
            self._until(DONE)

    def _before(self, trunk: nn.Module, _: Any) -> None:
        if not self._within:
            self._until(FORWARD + 2 * self._trunks.index(trunk) + torch.is_grad_enabled())

    def _until(self, wanted: int) -> None:
        """Does what others want until it is this process's turn."""
        while (action := self._agreed(wanted)) != wanted:
            if action == BACKWARD:
                self._back(None)
            else:
                trunk, gradient = divmod(action - FORWARD, 2)
                self.idle(self._trunks[trunk], gradient=bool(gradient))

    def _agreed(self, wanted: int) -> int:
        action = torch.tensor(wanted)
        dist.all_reduce(action, op=dist.ReduceOp.MAX, group=self.group)
        return int(action)

    def _back(self, loss: Tensor | None) -> None:
        for hidden in self._idle:
            nothing = 0.0 * hidden.sum()
            loss = nothing if loss is None else loss + nothing
        self._idle.clear()
        if loss is not None:
            loss.backward()

    def idle(self, trunk: nn.Module, *, gradient: bool) -> None:
        """A forward pass of one token; with gradient, it enters the next backward pass."""
        device = next(trunk.parameters()).device
        ids = torch.zeros((1, 1), dtype=torch.long, device=device)
        takes_cache = "use_cache" in inspect.signature(trunk.forward).parameters
        self._within = True
        try:
            with torch.set_grad_enabled(gradient), precision_context(self.precision, device.type):
                hidden = trunk(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    **({"use_cache": False} if takes_cache else {}),
                ).last_hidden_state
        finally:
            self._within = False
        if gradient:
            self._idle.append(hidden)


_present: list[Lockstep] = []


@contextmanager
def kept(group: Any, precision: str) -> Iterator[None]:
    """The block in which weights that train are sharded; see `Lockstep`."""
    _present.append(Lockstep(group, precision))
    try:
        yield
    finally:
        _present.pop()


def present() -> Lockstep | None:
    """What keeps this process in step with others; None where weights are not sharded."""
    return _present[-1] if _present else None


def backward(loss: Tensor) -> None:
    """The backward pass of a micro-batch, in step with other processes where they share the weights."""
    lockstep = present()
    if lockstep is not None and lockstep.active:
        lockstep.backward(loss)
    else:
        loss.backward()
