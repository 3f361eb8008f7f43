"""Rows, what the same prompt is, and the split."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.records import content_id, normalised_prompt, parse_messages, parse_row, split_of

PAIR = {"prompt": "Which?", "chosen": "a", "rejected": "b"}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_pair_and_a_ranking_have_the_same_parts() -> None:
    pair = parse_row("preferences", PAIR)
    ranking = parse_row("judge", {"prompt": user("Which?"), "completions": ["a", "b"], "ranks": [0, 1]})
    assert pair == ranking
    assert pair.completions == [
        [{"role": "assistant", "content": "a"}],
        [{"role": "assistant", "content": "b"}],
    ]


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("preferences", {"prompt": "p", "chosen": "a"}, "rejected is missing"),
        ("preferences", {**PAIR, "chosen": 3}, "chosen must be text"),
        (
            "preferences",
            {"prompt": "p", "completions": ["a", "b"], "ranks": [0]},
            "2 completions have 1 ranks",
        ),
        ("preferences", {"prompt": "p", "completions": ["a"], "ranks": [0]}, "at least two"),
        ("preferences", {"prompt": "p", "completions": ["a", "b"], "ranks": [0, True]}, "whole numbers"),
        ("preferences", {**PAIR, "probability": 1.5}, "between 0 and 1"),
        ("preferences", {**PAIR, "margin": "big"}, "margin must be a number"),
        ("demonstrations", {"prompt": [], "completion": "a"}, "prompt must be text or a list"),
        ("demonstrations", {"prompt": [{"role": "user"}], "completion": "a"}, "role and content"),
        ("unpaired", {"prompt": "p", "completion": "a", "label": 1}, "true or false"),
        ("text", {"prompt": "p"}, "text is missing"),
    ],
)
def test_what_is_wrong_is_named(kind: str, row: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_row(kind, row)


def test_a_string_and_its_message_are_one_prompt() -> None:
    assert normalised_prompt(parse_messages("  What IS\n it? ", "user", "prompt")) == "what is it?"
    assert normalised_prompt(user("What is it?")) == "what is it?"


def test_the_split_is_the_hash_of_the_normalised_prompt() -> None:
    """Computed here by hand, so that another version of prefloop splits alike."""
    point = int(hashlib.sha256(b"what is it?").hexdigest()[:16], 16) / 2**64
    expected = "fit" if point < 0.7 else "rl" if point < 0.9 else "evaluation"
    assert split_of(user("What  is it?"), fit=0.7, rl=0.2) == expected


@given(st.lists(st.text(max_size=20), min_size=1, max_size=30), st.text(max_size=20))
def test_appended_rows_move_nobody(prompts: list[str], added: str) -> None:
    before = [split_of(user(prompt), fit=0.5, rl=0.25, judge=0.3) for prompt in prompts]
    after = [split_of(user(prompt), fit=0.5, rl=0.25, judge=0.3) for prompt in [*prompts, added]]
    assert after[: len(prompts)] == before


@given(st.text(max_size=20), st.text(max_size=20), st.floats(0, 0.9))
def test_a_growing_conversation_stays_in_its_split(first: str, later: str, judge: float) -> None:
    grown = [*user(first), {"role": "assistant", "content": later}, *user(later)]
    assert split_of(grown, fit=0.6, rl=0.2, judge=judge) == split_of(
        user(first), fit=0.6, rl=0.2, judge=judge
    )


def test_shares_are_kept() -> None:
    uses = [split_of(user(f"question {i}"), fit=0.6, rl=0.3, judge=0.5) for i in range(4000)]
    for use, share in {"fit": 0.3, "judge": 0.3, "rl": 0.3, "evaluation": 0.1}.items():
        assert abs(uses.count(use) / 4000 - share) < 0.03  # more than four standard errors


def test_an_id_says_what_the_row_says_and_not_where_it_stood() -> None:
    assert content_id({**PAIR, "source": "a.jsonl", "line": 3}) == content_id(
        {**PAIR, "source": "b", "line": 9}
    )
    assert content_id(PAIR) != content_id({**PAIR, "chosen": "c"})
