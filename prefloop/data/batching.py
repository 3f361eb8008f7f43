"""From lists of tokens to padded tensors, and the order in which rows are seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefloop.data.templates import Encoded
from prefloop.training.noise import permutation

T = TypeVar("T")
GROUP_COST = {"cpu": 192, "cuda": 4096}
"""Tokens whose computing takes as long as what a further forward pass costs besides (launches, small
operations), at the small models that feel it most."""


@dataclass(frozen=True)
class Batch:
    """Padded sequences.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) bool, True on real tokens.
        wanted: (B, T) bool, True on tokens that a loss or score looks at.
        position_ids: (B, T) int64, each token's place in its own document, where rows hold several documents
            (see `pack`); None where a row is one.
    """

    input_ids: Tensor
    attention_mask: Tensor
    wanted: Tensor
    position_ids: Tensor | None = None

    def to(self, device: str) -> Batch:
        places = None if self.position_ids is None else self.position_ids.to(device)
        return Batch(
            self.input_ids.to(device), self.attention_mask.to(device), self.wanted.to(device), places
        )

    def rows(self, index: Sequence[int]) -> Batch:
        """Some rows, cut to the longest of them."""
        index = list(index)
        width = int(self.attention_mask[index].sum(dim=-1).max()) if index else self.input_ids.shape[1]
        return Batch(
            self.input_ids[index, :width], self.attention_mask[index, :width], self.wanted[index, :width]
        )


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


def collate(rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Pads encoded conversations; wanted are their trainable tokens."""
    return pad([row.input_ids for row in rows], [row.trainable for row in rows], int(tokenizer.pad_token_id))


def pack(rows: Sequence[Sequence[Encoded]], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Several conversations end to end in each row, positions restarting at 0 with each.

    The first token of a conversation is never wanted: what precedes it is another conversation. Each padding
    token has position 0, and so is a document of its own.
    """
    batch = pad(
        [[token for one in row for token in one.input_ids] for row in rows],
        [[flag for one in row for flag in (False, *one.trainable[1:])] for row in rows],
        int(tokenizer.pad_token_id),
    )
    position_ids = torch.zeros_like(batch.input_ids)
    for i, row in enumerate(rows):
        places = [place for one in row for place in range(len(one.input_ids))]
        position_ids[i, : len(places)] = torch.tensor(places, dtype=torch.long)
    return Batch(batch.input_ids, batch.attention_mask, batch.wanted, position_ids)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs documents into rows of `capacity` tokens: longest first, each into the fullest row that holds it.

    Best-fit decreasing needs at most 11/9 of the fewest rows possible, plus one (Johnson et al. 1974). Ties
    go by index, so that the result is a function of the lengths.

    Args:
        lengths: tokens of each document; one longer than `capacity` gets a row of its own.

    Returns:
        Indices into `lengths`, one list a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [n for n in range(len(rows)) if room[n] >= lengths[i]]
        if fitting:
            n = min(fitting, key=lambda n: room[n])
            rows[n].append(i)
            room[n] -= lengths[i]
        else:
            rows.append([i])
            room.append(capacity - lengths[i])
    return rows


def length_groups(lengths: Sequence[int], device: str, *, overhead: float | None = None) -> list[list[int]]:
    """Splits rows into groups of similar length, so that little of a forward pass is spent on padding.

    Exact: of all splits of the sorted rows, the one of least padded tokens, where a further group costs as
    much as `GROUP_COST` tokens. A group is padded to its longest row, so a cut pays between lengths alone.

    Args:
        lengths: tokens of each row. device: "cpu" or "cuda", which set the cost of a group.
        overhead: another cost of a group (tokens).

    Returns:
        Indices into `lengths`, shortest rows first.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    ends = [n + 1 for n in range(len(order) - 1) if lengths[order[n]] != lengths[order[n + 1]]]
    ends = [0, *ends, len(order)] if order else [0]
    overhead = GROUP_COST[device] if overhead is None else overhead
    best, start_of = [0.0], [0]
    for last in range(1, len(ends)):
        width = lengths[order[ends[last] - 1]]
        cost, start = min(
            (best[first] + (ends[last] - ends[first]) * width + overhead, first) for first in range(last)
        )
        best.append(cost)
        start_of.append(start)
    groups: list[list[int]] = []
    last = len(ends) - 1
    while last > 0:
        groups.append(order[ends[start_of[last]] : ends[last]])
        last = start_of[last]
    return groups[::-1]


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


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive slices of at most `size` items (all of them when `size` is 0)."""
    size = size or max(len(items), 1)
    for start in range(0, len(items), size):
        yield items[start : start + size]
