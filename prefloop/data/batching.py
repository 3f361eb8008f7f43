"""From lists of tokens to padded tensors, and the order in which rows are seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefloop.training.noise import permutation


@dataclass(frozen=True)
class Batch:
    """Padded sequences.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) bool, True on real tokens.
        wanted: (B, T) bool, True on tokens that a loss or score looks at.
    """

    input_ids: Tensor
    attention_mask: Tensor
    wanted: Tensor

    def to(self, device: str) -> Batch:
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.wanted.to(device))


def pad(sequences: Sequence[Sequence[int]], wanted: Sequence[Sequence[bool]], pad_id: int) -> Batch:
    """Pads on the right to the longest sequence."""
    width = max(len(ids) for ids in sequences)
    input_ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(sequences), width), dtype=torch.bool)
    mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    for i, (ids, flags) in enumerate(zip(sequences, wanted, strict=True)):
        input_ids[i, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        attention[i, : len(ids)] = True
        mask[i, : len(ids)] = torch.tensor(flags, dtype=torch.bool)
    return Batch(input_ids, attention, mask)


def steps_in(rows: int, batch_size: int, epochs: int, steps: int) -> int:
    """Optimiser steps of a training: `steps` if set, else those of `epochs` over the rows."""
    return steps or epochs * max(-(-rows // batch_size), 1)


class Order:
    """Which rows make up optimiser step s: each epoch is a permutation keyed by (seed, purpose, epoch).

    Any step's rows can be named without going through those before it.
    """

    def __init__(self, rows: int, batch_size: int, key: tuple[int | str, ...]) -> None:
        self.rows, self.batch_size, self.key = rows, batch_size, key
        self.per_epoch = max(-(-rows // batch_size), 1)
        self._epoch = -1
        self._permutation: list[int] = []

    def step(self, number: int) -> list[int]:
        """Row indices of the 0-based step `number`."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._permutation = permutation((*self.key, "epoch", epoch), self.rows)
            self._epoch = epoch
        return self._permutation[place * self.batch_size : (place + 1) * self.batch_size]


def chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive slices of at most `size` items (all of them when `size` is 0)."""
    size = size or max(len(items), 1)
    for start in range(0, len(items), size):
        yield items[start : start + size]
