"""Padding, and groups of similar length."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.batching import GROUP_COST, length_groups, pad


def cost(groups: list[list[int]], lengths: list[int], device: str) -> int:
    """Padded tokens, and the price of each group's forward pass."""
    return sum(len(group) * max(lengths[i] for i in group) + GROUP_COST[device] for group in groups)


def cheapest(lengths: list[int], device: str) -> int:
    """The least cost over every way to cut the sorted rows."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    inner = range(1, len(order))
    costs = []
    for cuts in (cut for count in range(len(order)) for cut in combinations(inner, count)):
        bounds = [0, *cuts, len(order)]
        groups = [order[a:b] for a, b in pairwise(bounds)]
        costs.append(cost(groups, lengths, device))
    return min(costs)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=9), st.sampled_from(["cpu", "cuda"]))
def test_groups_hold_every_row_once_at_the_least_cost(lengths: list[int], device: str) -> None:
    groups = length_groups(lengths, device)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert cost(groups, lengths, device) == cheapest(lengths, device)


def test_a_long_row_stands_alone_and_similar_ones_together() -> None:
    # 4 rows of 10 and one of 500: together 2,500 padded tokens, apart 540 and two groups' price.
    assert length_groups([10, 500, 10, 12, 10], "cpu") == [[0, 2, 4, 3], [1]]
    assert length_groups([], "cpu") == []


def test_rows_are_cut_to_the_longest_of_them() -> None:
    batch = pad([[1, 2, 3, 4], [5], [6, 7]], [[True] * 4, [True], [False, True]], pad_id=0)
    part = batch.rows([2, 1])
    assert part.input_ids.tolist() == [[6, 7], [5, 0]]
    assert part.attention_mask.tolist() == [[True, True], [True, False]]
    assert part.wanted.tolist() == [[False, True], [True, False]]
