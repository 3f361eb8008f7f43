"""Keys and values of completions under way: written in place, and rearranged where rows join or leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer's keys and values in buffers that have room for the tokens to come.

    transformers' own layer makes a longer copy of everything for each token. Here a token is written behind
    those before it, and `keys` and `values` are the part of the buffers that is filled. Both give attention
    the same numbers.

    Args:
        room: tokens that the buffers hold (count); with more of them they grow.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self._buffers: list[Tensor] = []  # keys and values: (B, H, room, D)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds (B, H, t, D) keys and values; returns all of them so far, (B, H, T, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        length = held + key_states.shape[-2]
        if not self._buffers or length > self._buffers[0].shape[-2]:
            self._buffers = self._wider((key_states, value_states), held, max(length, self.room))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, held:length] = states
        return self._show(length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes what row `indices[i]` was: (N,) int64, in any order, some of them more than once.

        With as many rows or fewer, only those that change place are copied.
        """
        length = self.get_seq_length()
        if not length:
            return
        if len(indices) > len(self._buffers[0]):
            self._buffers = [buffer.index_select(0, indices) for buffer in self._buffers]
        else:
            moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(-1)
            for buffer in self._buffers:
                buffer[moved, :, :length] = buffer[indices[moved], :, :length]
            self._buffers = [buffer[: len(indices)] for buffer in self._buffers]
        self._show(length)

    def _wider(self, like: tuple[Tensor, Tensor], held: int, room: int) -> list[Tensor]:
        wider = [states.new_empty((*states.shape[:2], room, states.shape[-1])) for states in like]
        for old, new in zip(self._buffers, wider, strict=False):
            new[:, :, :held] = old[:, :, :held]
        return wider

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, :length] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


def roomy_cache(model: PreTrainedModel, room: int) -> DynamicCache:
    """A cache for sequences of up to `room` tokens.

    Layers that keep no more than a window, or a state, are what transformers makes them.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
