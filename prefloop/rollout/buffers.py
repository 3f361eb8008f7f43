"""Memory for keys and values, which is given back to the system at once."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

MAPPED = 2**22
"""Bytes from which on memory is mapped: new pages are filled with zeros by the system, which costs time."""


class Buffer:
    """A layer's keys or values: (B, H, room, D), 0 where nothing is held.

    On a CPU large memory is mapped, apart from the process's heap. Buffers are tens of MiB, and each is a
    little larger or smaller than the one before: on the heap they leave holes that the next does not fit
    into, and a process that keeps freed memory (`prefloop.training.allocator`) grows by them in each batch.

    Args:
        like: (.., H, .., D), whose device, dtype and widths it has.
        dtype: instead of that of `like`.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype | None) -> None:
        self._memory = like.new_empty(0, dtype=dtype)
        self._heads, self._width = like.shape[1], like.shape[3]
        self.rows = self._memory.view(0, self._heads, 0, self._width)

    def hold(self, states: Tensor | None, rows: int, room: int) -> None:
        """Takes so many rows with so much room, which begin with `states` (B, H, t, D).

        States may be its own: where what it has is enough, they change place within it.
        """
        shape = (rows, self._heads, room, self._width)
        count = math.prod(shape)
        if count > len(self._memory):
            large = count * self._memory.element_size() >= MAPPED
            on_pages = large and self._memory.device.type == "cpu"
            self._memory = _mapped(count, self._memory) if on_pages else self._memory.new_empty(count)
        elif states is not None and states.untyped_storage().data_ptr() == self._memory.data_ptr():
            states = states.clone()
        self.rows = self._memory[:count].view(shape)
        held = 0
        if states is not None:
            held = states.shape[2]
            self.rows[:, :, :held] = states
        self.rows[:, :, held:] = 0


def _mapped(count: int, like: Tensor) -> Tensor:
    """So many numbers on pages of their own, which go back to the system with the tensor.

    Raises:
        MemoryError: the system has no such room.
    """
    size = count * like.element_size()
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"can't allocate memory for {size:,} bytes of keys or values") from error
    return torch.frombuffer(pages, dtype=like.dtype)
