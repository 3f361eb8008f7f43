"""Completions marked desirable or not, from rows that say so and from comparisons."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.unpaired import Unpaired, unpaired


def test_rows_with_a_label_are_taken_as_they_are() -> None:
    rows = [
        {"prompt": "p", "completion": "good", "label": True},
        {"prompt": [{"role": "user", "content": "q"}], "completion": "bad", "label": False},
    ]
    kept, unused = unpaired(rows)
    assert kept == [Unpaired("p", "good", True), Unpaired([{"role": "user", "content": "q"}], "bad", False)]
    assert unused == 0


def test_a_pair_gives_one_of_each() -> None:
    kept, unused = unpaired([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert kept == [Unpaired("p", "a", True), Unpaired("p", "b", False)]
    assert unused == 0


def test_a_soft_label_against_the_chosen_one_turns_the_pair_round() -> None:
    kept, _ = unpaired([{"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.2}])
    assert {row.completion: row.desirable for row in kept} == {"a": False, "b": True}


@pytest.mark.parametrize(
    ("ranks", "desirable"),
    [
        ([0, 1], [True, False]),
        ([2, 0, 1], [False, True, None]),
        ([0, 1, 2, 3], [True, True, False, False]),
        ([0, 0, 0, 3], [True, True, True, False]),
        ([0, 3, 3, 3], [True, False, False, False]),
        ([1, 1, 1], [None, None, None]),
    ],
)
def test_a_ranking_is_split_at_its_mean(ranks: list[int], desirable: list[bool | None]) -> None:
    row = {"prompt": "p", "completions": [str(i) for i in range(len(ranks))], "ranks": ranks}
    kept, unused = unpaired([row])
    assert {int(str(r.completion)): r.desirable for r in kept} == {
        i: label for i, label in enumerate(desirable) if label is not None
    }
    assert unused == desirable.count(None)


@pytest.mark.parametrize("change", [{"probability": 0.5}, {"skipped": True}, {"both_bad": True}])
def test_what_says_nothing_of_either_is_left_out_and_counted(change: dict[str, Any]) -> None:
    assert unpaired([{"prompt": "p", "chosen": "a", "rejected": "b", **change}]) == ([], 2)


@given(st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=5), max_size=5))
def test_every_completion_has_a_fate(rankings: list[list[int]]) -> None:
    rows = [{"prompt": "p", "completions": ["x"] * len(r), "ranks": r} for r in rankings]
    kept, unused = unpaired(rows)
    assert len(kept) + unused == sum(map(len, rankings))
