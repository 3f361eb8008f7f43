"""Keys and values of completions under way: written in place, and rearranged where rows join or leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer's keys and values in buffers that have room for tokens to come.

    transformers' own layer makes a longer copy of everything for each token. Here a token is written behind
    those before it, and `keys` and `values` are the part of the buffers that is filled. Both give attention
    the same numbers.

    Args:
        step: buffers hold a multiple of so many tokens, and grow by it.

    Attributes:
        buffers: keys and values, (B, H, room, D) each; 0 where they are not filled.
    """

    def __init__(self, step: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.step = step
        self.buffers: list[Tensor] = []

    @property
    def room(self) -> int:
        """Tokens that the buffers hold."""
        return self.buffers[0].shape[-2] if self.buffers else 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds (B, H, t, D) keys and values; returns all of them so far, (B, H, T, D)."""
        return self._show(self._written(key_states, value_states))

    def add(self, keys: Tensor, values: Tensor) -> list[Tensor]:
        """Adds one token's (B, H, D) keys and values; returns the buffers."""
        self._show(self._written(keys.unsqueeze(2), values.unsqueeze(2)))
        return self.buffers

    def _written(self, keys: Tensor, values: Tensor) -> int:
        """Writes (B, H, t, D) behind what is there; returns how many tokens are there then."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        held = self.get_seq_length()
        length = held + keys.shape[-2]
        if length > self.room:
            self.buffers = self._wider((keys, values), held, -(-length // self.step) * self.step)
        for buffer, states in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, held:length] = states
        return length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes what row `indices[i]` was: (N,) int64, in any order, some of them more than once.

        With as many rows or fewer, only those that change place are copied.
        """
        length = self.get_seq_length()
        if not length:
            return
        if len(indices) > len(self.buffers[0]):
            self.buffers = [buffer.index_select(0, indices) for buffer in self.buffers]
        else:
            moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(-1)
            for buffer in self.buffers:
                buffer[moved, :, :length] = buffer[indices[moved], :, :length]
            self.buffers = [buffer[: len(indices)] for buffer in self.buffers]
        self._show(length)

    def _wider(self, like: tuple[Tensor, Tensor], held: int, room: int) -> list[Tensor]:
        wider = [states.new_empty((*states.shape[:2], room, states.shape[-1])) for states in like]
        for old, new in zip(self.buffers, wider, strict=False):
            new[:, :, :held] = old[:, :, :held]
        for new in wider:
            new[:, :, held:] = 0
        return wider

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, :length] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values


def roomy_cache(model: PreTrainedModel, step: int) -> DynamicCache:
    """A cache whose buffers grow by `step` tokens.

    Layers that keep no more than a window, or a state, are what transformers makes them.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer(step) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
