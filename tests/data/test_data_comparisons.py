"""Preference rows as trainers see them, and prompts kept apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.comparisons import as_ranking, rankings
from prefloop.data.holdout import held_out, split_holdout


def test_a_pair_is_a_ranking_of_two() -> None:
    row = {
        "prompt": "p",
        "chosen": "good",
        "rejected": "bad",
        "margin": 0.5,
        "rater": "r1",
        "source": "s",
        "meta": {"kind": "fact"},
    }
    ranking = as_ranking(row)
    assert ranking is not None
    assert (ranking.completions, ranking.ranks, ranking.pairs) == (["good", "bad"], [0, 1], [(0, 1)])
    assert (ranking.margin, ranking.probability) == (0.5, 1.0)
    assert (ranking.rater, ranking.source, ranking.subset) == ("r1", "s", "fact")


def test_a_soft_label_against_the_chosen_one_turns_the_pair_round() -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for probability, pairs in ((0.8, [(0, 1)]), (0.2, [(1, 0)])):
        ranking = as_ranking({**row, "probability": probability})
        assert ranking is not None
        assert ranking.pairs == pairs
        assert abs(ranking.probability - 0.8) < 1e-12


def test_what_orders_nothing_is_counted() -> None:
    rows = [
        {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 0, 1]},
        {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 0]},
        {"prompt": "p", "chosen": "a", "rejected": "b", "skipped": True},
        {"prompt": "p", "chosen": "a", "rejected": "b", "both_bad": True},
    ]
    kept, unused = rankings(rows)
    assert unused == 3
    assert [ranking.pairs for ranking in kept] == [[(1, 0), (1, 2)]]


@given(st.lists(st.text(max_size=8), max_size=30), st.floats(0, 1))
def test_a_prompt_is_on_one_side_whoever_is_beside_it(prompts: list[str], share: float) -> None:
    rows = [{"prompt": prompt} for prompt in prompts]
    kept, apart = split_holdout(rows, share, "sft")
    assert len(kept) + len(apart) == len(rows)
    assert all(held_out(row["prompt"], share, "sft") for row in apart)
    assert not any(held_out(row["prompt"], share, "sft") for row in kept)


def test_a_share_is_held_out_and_purposes_differ() -> None:
    prompts = [f"question {i}" for i in range(2000)]
    one = {p for p in prompts if held_out(p, 0.1, "sft")}
    other = {p for p in prompts if held_out(p, 0.1, "dpo")}
    assert 150 < len(one) < 250
    assert len(one & other) < 50
    assert held_out("Question  7 ", 0.1, "sft") == held_out("question 7", 0.1, "sft")
