"""Completions marked desirable or not, from rows that say so and from comparisons."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config.kto import KTOConfig
from prefloop.data.unpaired import Unpaired, balance_advice, unpaired, weight_ratio


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


def test_a_label_that_was_skipped_is_left_out() -> None:
    row = {"prompt": "p", "completion": "a", "label": True}
    assert unpaired([row, {**row, "skipped": True}]) == ([Unpaired("p", "a", True)], 1)


def test_advice_is_what_brings_the_classes_between_1_and_4_thirds() -> None:
    assert weight_ratio(30, 120, KTOConfig()) == 0.25
    assert "desirable completions weigh 0.25 times" in (few := balance_advice(30, 120, KTOConfig()))
    assert "a desirable_weight from 4 to 5.33" in few
    for weight in (4.0, 5.33):
        assert balance_advice(30, 120, KTOConfig(desirable_weight=weight)) == ""
    many = balance_advice(120, 30, KTOConfig(desirable_weight=2.0))
    assert "weigh 8 times" in many
    assert "an undesirable_weight from 6 to 8" in many
    for weight in (6.0, 8.0):
        assert balance_advice(120, 30, KTOConfig(desirable_weight=2.0, undesirable_weight=weight)) == ""


def test_the_completions_of_pairs_need_no_advice() -> None:
    assert balance_advice(50, 50, KTOConfig()) == balance_advice(95, 100, KTOConfig()) == ""
