"""Keys and values of completions under way: written in place, and rearranged where rows join or leave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from prefloop.rollout.buffers import Buffer


class RoomyLayer(DynamicLayer):
    """A layer's keys and values in buffers that have room for tokens to come.

    transformers' own layer makes a longer copy of everything for each token. Here a token is written behind
    those before it, and `keys` and `values` are the part of the buffers that is filled. Both give attention
    the same numbers.

    Args:
        step: buffers hold a multiple of so many tokens, and grow by it.
        kept: dtype of the buffers; that of what is written, if None.

    Attributes:
        buffers: keys and values.
    """

    def __init__(self, step: int, kept: torch.dtype | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.step, self.kept = step, kept
        self.buffers: list[Buffer] = []

    @property
    def room(self) -> int:
        """Tokens that the buffers hold."""
        return self.buffers[0].rows.shape[2] if self.buffers else 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds (B, H, t, D) keys and values; returns all of them so far, (B, H, T, D)."""
        return self._show(self._written(key_states, value_states))

    def add(self, keys: Tensor, values: Tensor) -> list[Tensor]:
        """Adds one token's (B, H, D) keys and values; returns all with the room behind them."""
        self._show(self._written(keys.unsqueeze(2), values.unsqueeze(2)))
        return [buffer.rows for buffer in self.buffers]

    def put(self, rows: Tensor, source: Tensor, other: RoomyLayer, shape: tuple[int, int]) -> None:
        """Takes over another layer's rows, their last token in the last place.

        Args:
            rows: (N,) int64, to which they go.
            source: (N,) int64, which row of the other each takes.
            shape: rows and tokens that this layer then has; what nothing was put into is 0.
        """
        count, length = shape
        states = other.filled()
        if not self.is_initialized:
            self._begin(*states)
            for buffer in self.buffers:
                buffer.hold(None, count, self._room_for(length + 1))
            self._show(length)
        for buffer, part in zip(self.buffers, states, strict=True):
            buffer.rows[rows, :, length - part.shape[2] : length] = part[source].to(buffer.rows.dtype)

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        self.lazy_initialization(keys, values)
        self.buffers = [Buffer(states, self.kept) for states in (keys, values)]

    def _room_for(self, length: int) -> int:
        return -(-length // self.step) * self.step

    def _written(self, keys: Tensor, values: Tensor) -> int:
        """Writes (B, H, t, D) behind what is there; returns how many tokens are there then."""
        if not self.is_initialized:
            self._begin(keys, values)
        held = self.get_seq_length()
        length = held + keys.shape[-2]
        self.keys = self.values = keys.new_empty(0)  # so that what is outgrown is let go one by one
        for buffer, states in zip(self.buffers, (keys, values), strict=True):
            if length > buffer.rows.shape[2]:
                buffer.hold(buffer.rows[:, :, :held] if held else None, len(states), self._room_for(length))
            buffer.rows[:, :, held:length] = states
        return length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes what row `indices[i]` was: (N,) int64, in any order, some of them more than once.

        With as many rows or fewer, only those that change place are copied.
        """
        length = self.get_seq_length()
        if not length:
            return
        if len(indices) > len(self.buffers[0].rows):
            for buffer in self.buffers:
                buffer.hold(buffer.rows[indices, :, :length], len(indices), self.room)
        else:
            moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(-1)
            for buffer in self.buffers:
                buffer.rows[moved, :, :length] = buffer.rows[indices[moved], :, :length]
                buffer.rows = buffer.rows[: len(indices)]
        self._show(length)

    def filled(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, (B, H, T, D) each."""
        return self._show(self.get_seq_length())

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer.rows[:, :, :length] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values


def roomy_cache(model: PreTrainedModel, step: int) -> DynamicCache:
    """A cache whose buffers grow by `step` tokens.

    Under autocast it keeps what attention would cast keys and values to at every token. Layers that keep no
    more than a window, or a state, are what transformers makes them.
    """
    kind = model.device.type
    kept = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    cache = DynamicCache(config=model.config)
    cache.layers = [
        RoomyLayer(step, kept) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def roomy_layers(cache: DynamicCache) -> list[RoomyLayer]:
    """Those of a cache's layers that hold every token."""
    return [layer for layer in cache.layers if type(layer) is RoomyLayer]
