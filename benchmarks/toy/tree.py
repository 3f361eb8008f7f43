"""Every response of a tiny language; a policy is a table of logits, one row a prefix, in float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

END = 0
"""The token that ends a response; a response of full length need not have it."""


@dataclass(frozen=True)
class Tree:
    """All N responses of at most `length` tokens over `vocabulary` tokens.

    Attributes:
        tokens: (N, T) int64, 0 after the end.
        mask: (N, T) bool, True on real tokens, the end token included.
        states: (N, T) int64, which prefix each token follows.
        count: prefixes, S.
    """

    vocabulary: int
    length: int
    tokens: Tensor
    mask: Tensor
    states: Tensor
    count: int

    @property
    def lengths(self) -> Tensor:
        """(N,) float64, real tokens."""
        return self.mask.sum(dim=-1).double()

    def logprobs(self, table: Tensor) -> Tensor:
        """(N, T) log-prob of each token under logits (S, V); 0 where the mask is False."""
        chosen = table.log_softmax(dim=-1)[self.states, self.tokens]
        return torch.where(self.mask, chosen, torch.zeros_like(chosen))

    def log_distribution(self, table: Tensor) -> Tensor:
        """(N,) log-prob of each response."""
        return self.logprobs(table).sum(dim=-1)


def make_tree(vocabulary: int, length: int) -> Tree:
    """Enumerates responses: those that end by the end token, and those cut at `length`."""
    words = range(1, vocabulary)
    responses = [(*body, END) for size in range(length) for body in itertools.product(words, repeat=size)]
    responses += list(itertools.product(words, repeat=length))
    prefixes: dict[tuple[int, ...], int] = {}
    rows, masks, states = [], [], []
    for response in responses:
        padding = length - len(response)
        rows.append([*response, *[END] * padding])
        masks.append([True] * len(response) + [False] * padding)
        places = [prefixes.setdefault(response[:t], len(prefixes)) for t in range(len(response))]
        states.append(places + [0] * padding)
    return Tree(
        vocabulary, length, torch.tensor(rows), torch.tensor(masks), torch.tensor(states), len(prefixes)
    )


def random_table(tree: Tree, seed: int, spread: float = 0.7) -> Tensor:
    """(S, V) float64 logits of a reference policy without zeros."""
    return torch.randn(
        tree.count, tree.vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).mul(spread)


def rewards(tree: Tree) -> dict[str, Tensor]:
    """Three rewards of different nature, (N,) float64 each, that pull far even at a beta of 1."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(len(tree.tokens), generator=generator, dtype=torch.float64)
    ended = (torch.where(tree.mask, tree.tokens, torch.ones_like(tree.tokens)) == END).any(dim=-1)
    return {
        "first word": 2.0 * (tree.tokens[:, 0] == 1).double(),
        "noise": noise,
        "length": 0.8 * tree.lengths - 1.5 * (~ended).double(),
    }


def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p || q) of two distributions over the responses, (N,) log-probs each (nats)."""
    return float((log_p.exp() * (log_p - log_q)).sum())
