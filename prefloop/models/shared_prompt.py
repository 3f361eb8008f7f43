"""A prompt encoded once for all its completions: a tree of tokens in one sequence.

The prompt stands first, its completions after it; each attends to the prompt and to itself alone, at the
positions that it would have right after the prompt. A decoder then computes for every token what it computes
when each conversation is encoded apart, and the prompt's tokens are computed once instead of K times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefloop.models.adapters import plain
from prefloop.models.forward import adjusts_logits, hidden_states, in_passes, precision_context
from prefloop.models.head_logprobs import head_logprobs
from prefloop.models.heads import read
from prefloop.models.layout import Layout, layout_of
from prefloop.models.ragged import attends_plainly, flat_states, reads_flat

ATTENTION_COST = 1 / 4
"""What a token costs in attention for each token that it may look at, in layers of width 1, to what it costs
besides: measured on a CPU (`python -m benchmarks.shared_prompt`)."""

Tokens = Sequence[int]


@dataclass(frozen=True)
class Tree:
    """A prefix and its branches, each of at least one token."""

    prefix: Tokens
    branches: Sequence[Tokens]

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))


def tree_of(sequences: Sequence[Tokens], longest: int | None = None) -> Tree:
    """Sequences as one tree: what they have in common at the beginning, and the rest of each.

    Args:
        longest: tokens of the prefix at most, where some of what they have in common is not to be shared.
    """
    limit = min(map(len, sequences)) - 1
    limit = limit if longest is None else min(limit, longest)
    shared = next((i for i in range(limit) if len({ids[i] for ids in sequences}) > 1), limit)
    return Tree(sequences[0][:shared], [ids[shared:] for ids in sequences])


def trees_of(
    sequences: Sequence[Tokens], width: int, *, always: bool = False, longest: int | None = None
) -> list[Tree]:
    """One tree of all sequences where that pays, else a tree each.

    A tree has fewer tokens, but its attention is computed over all of it before the mask takes most away:
    with short prompts and long completions that costs more than the prompt's tokens save.

    Args:
        width: hidden size of the trunk, which sets what a token costs besides attention.
        always: one tree in any case.
        longest: tokens of the prefix at most.
    """

    def cost(length: int) -> float:
        return length * (1 + ATTENTION_COST * length / width)

    tree = tree_of(sequences, longest)
    if always or cost(len(tree)) < sum(cost(len(ids)) for ids in sequences):
        return [tree]
    return [Tree([], [ids]) for ids in sequences]


@dataclass(frozen=True)
class TreeBatch:
    """Trees as a trunk sees them: padded rows, or end to end.

    Attributes:
        input_ids, position_ids: (B, T) int64, or (N,) end to end; positions are those of the conversations
            encoded apart.
        starts: (B,) int64, where each tree begins in the flattened tokens.
        rows, ends: (K,) int64, the tree and the place in it of each branch's last token, branches in order.
        attention_mask: (B, 1, T, T) bool, True where query (dim 2) may look at key (dim 3); None end to end.
        layout: who attends to whom; None of padded rows.
    """

    input_ids: Tensor
    position_ids: Tensor
    starts: Tensor
    rows: Tensor
    ends: Tensor
    attention_mask: Tensor | None = None
    layout: Layout | None = None


def _tokens(tree: Tree) -> tuple[list[int], list[int], list[int]]:
    """A tree's tokens, their positions, and the branch that each belongs to: 0 is the prefix."""
    ids, positions, branch = list[int](), list[int](), list[int]()
    for number, own in enumerate([tree.prefix, *tree.branches]):
        offset = len(tree.prefix) if number else 0
        ids += own
        positions += range(offset, offset + len(own))
        branch += [number] * len(own)
    return ids, positions, branch


def _ends(trees: Sequence[Tree]) -> tuple[Tensor, Tensor]:
    """The tree and the place in it of each branch's last token."""
    rows, ends = list[int](), list[int]()
    for row, tree in enumerate(trees):
        rows += [row] * len(tree.branches)
        ends += [end - 1 for end in accumulate(map(len, tree.branches), initial=len(tree.prefix))][1:]
    return torch.tensor(rows), torch.tensor(ends)


def padded_trees(trees: Sequence[Tree], pad_id: int) -> TreeBatch:
    """Pads trees on the right; a pad looks at pads alone, and nothing looks at it."""
    width = max(map(len, trees))
    input_ids = torch.full((len(trees), width), pad_id, dtype=torch.long)
    position_ids = torch.zeros((len(trees), width), dtype=torch.long)
    branch = torch.full((len(trees), width), -1)
    for row, tree in enumerate(trees):
        for place, values in zip((input_ids, position_ids, branch), _tokens(tree), strict=True):
            place[row, : len(values)] = torch.tensor(values)
    query, key = branch[:, :, None], branch[:, None, :]
    before = torch.ones(width, width, dtype=torch.bool).tril()
    allowed = before & ((key == query) | ((key == 0) & (query >= 0)))
    starts = torch.arange(len(trees)) * width
    return TreeBatch(input_ids, position_ids, starts, *_ends(trees), attention_mask=allowed[:, None])


def flat_trees(trees: Sequence[Tree]) -> TreeBatch:
    """Trees end to end; attention sees each branch behind its prefix (`prefloop.models.ragged`)."""
    input_ids, position_ids = list[int](), list[int]()
    starts, lengths, prefix_starts, prefix_lengths = list[int](), list[int](), list[int](), list[int]()
    trunks = list[int]()
    for tree in trees:
        first = len(input_ids)
        trunks.append(first)
        ids, positions, _ = _tokens(tree)
        input_ids += ids
        position_ids += positions
        starts += accumulate(map(len, tree.branches[:-1]), initial=first + len(tree.prefix))
        lengths += map(len, tree.branches)
        prefix_starts += [first] * len(tree.branches)
        prefix_lengths += [len(tree.prefix)] * len(tree.branches)
    steady = torch.is_autocast_enabled("cpu")
    layout = layout_of(starts, lengths, prefix_starts, prefix_lengths, steady=steady)
    tokens = torch.tensor(input_ids), torch.tensor(position_ids), torch.tensor(trunks)
    return TreeBatch(*tokens, *_ends(trees), layout=layout)


Look = Callable[[TreeBatch, list[int]], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""From a batch with K branches, and the branches' numbers: which of its flattened tokens' states are wanted,
(n,) int64, and what makes of these (n, D) a row for each branch."""


def _of_branches(
    model: PreTrainedModel, trees: Sequence[Tree], pad_id: int, precision: str, look: Look
) -> Tensor:
    """What `look` makes of each branch, trees and branches in order."""
    device = model.device
    starts = [0, *accumulate(len(tree.branches) for tree in trees)]

    def numbers_of(group: list[int]) -> list[int]:
        return [place for i in group for place in range(starts[i], starts[i + 1])]

    def of_group(group: list[int]) -> Tensor:
        with precision_context(precision, device.type):
            batch = _batch(model, [trees[i] for i in group], pad_id)
            wanted, read = look(batch, numbers_of(group))
            return read(_states(model, batch, wanted.to(device)))

    together, order = in_passes(model, [len(tree) for tree in trees], of_group)
    return torch.zeros_like(together).index_copy(0, torch.tensor(numbers_of(order), device=device), together)


def _batch(model: PreTrainedModel, trees: Sequence[Tree], pad_id: int) -> TreeBatch:
    return flat_trees(trees) if reads_flat(plain(model).base_model) else padded_trees(trees, pad_id)


def _states(model: PreTrainedModel, batch: TreeBatch, wanted: Tensor) -> Tensor:
    """Hidden states of the `wanted` tokens, (n,) int64 of a batch's flattened ones: (n, D)."""
    device, trunk = model.device, plain(model).base_model
    if batch.layout is not None:
        return flat_states(trunk, batch.input_ids, batch.position_ids, batch.layout, wanted)
    assert batch.attention_mask is not None
    hidden: Tensor = trunk(
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        position_ids=batch.position_ids.to(device),
        use_cache=False,
    ).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, wanted)


def _last(batch: TreeBatch) -> Tensor:
    """The branches' last tokens: (K,) int64."""
    return batch.starts[batch.rows] + batch.ends


def tree_scores(model: PreTrainedModel, trees: Sequence[Tree], pad_id: int, precision: str) -> Tensor:
    """A classifier's scores at each branch's last token, trees and branches in order: (N, labels) float32."""
    head = cast(nn.Module, plain(model).score)

    def look(batch: TreeBatch, _: list[int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return _last(batch), lambda states: read(head, states).float()

    return _of_branches(model, trees, pad_id, precision, look)


def tree_logprobs(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    wanted: Sequence[Sequence[bool]],
    pad_id: int,
    precision: str,
) -> Tensor:
    """A language model's log-probs SUMMED over each branch's wanted tokens, trees and branches in order.

    The head runs on the tokens before wanted ones alone. A branch's first token follows the prefix's last,
    whose hidden state so serves all branches; without a prefix nothing is before it, and it is never wanted.

    Args:
        wanted: for each branch one bool a token.

    Returns:
        (N,) float32, or float64 of a model in float64.
    """
    head = plain(model).get_output_embeddings()
    branches = [(len(tree.prefix), branch) for tree in trees for branch in tree.branches]

    def look(batch: TreeBatch, numbers: list[int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        found = list[tuple[int, int, int]]()
        ends = zip(numbers, batch.starts[batch.rows].tolist(), batch.ends.tolist(), strict=True)
        for branch, (number, start, end) in enumerate(ends):
            prefix, tokens = branches[number]
            before = [prefix - 1, *range(end + 1 - len(tokens), end)]
            found += [
                (branch, start + place, token)
                for place, token, flag in zip(before, tokens, wanted[number], strict=True)
                if flag and place >= 0
            ]
        table = torch.tensor(found, dtype=torch.long, device=model.device).view(-1, 3)
        owners, places, targets = table.unbind(dim=1)

        def summed(states: Tensor) -> Tensor:
            picked, _ = head_logprobs(head, states, targets)
            return picked.new_zeros(len(numbers)).index_add(0, owners, picked)

        return places, summed

    return _of_branches(model, trees, pad_id, precision, look)


_CAN_SHARE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""What was found out of each model."""


def can_share(model: PreTrainedModel, pad_id: int) -> bool:
    """True for a classifier or language model whose trunk reads a tree as it reads its conversations apart.

    What its configuration rules out is refused: windows of attention, kernels that take no mask of this
    shape, and logits that are changed after the head. The rest is tried on a few tokens, since positions that
    a model keeps for itself (recurrences, biases by distance) show nowhere else. A model is tried once.
    """
    if model not in _CAN_SHARE:
        _CAN_SHARE[model] = _shares(model, pad_id)
    return _CAN_SHARE[model]


@torch.no_grad()
def _shares(model: PreTrainedModel, pad_id: int) -> bool:
    inner = plain(model)
    scores = hasattr(inner, "score")
    if not attends_plainly(inner):
        return False
    if not scores and (inner.get_output_embeddings() is None or adjusts_logits(inner)):
        return False
    tokens = [i for i in range(8) if i != pad_id][:6]
    tree = Tree(tokens[:3], [tokens[3:5], tokens[5:6], tokens[2:6]])
    was_training = model.training
    model.eval()
    try:
        apart = [torch.tensor([[*tree.prefix, *branch]], device=model.device) for branch in tree.branches]
        if scores:
            found = tree_scores(model, [tree], pad_id, "fp32")
            expected = [model(input_ids=ids, use_cache=False).logits[0] for ids in apart]
        else:
            found = _of_branches(
                model, [tree], pad_id, "fp32", lambda batch, _: (_last(batch), lambda states: states)
            )
            expected = [hidden_states(model, ids, torch.ones_like(ids))[0, -1] for ids in apart]
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError):
        return False  # it takes no such mask or positions
    finally:
        model.train(was_training)
    return bool(torch.allclose(found.float(), torch.stack(expected).float(), atol=1e-4, rtol=1e-4))
