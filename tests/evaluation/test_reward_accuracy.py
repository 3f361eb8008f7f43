"""Figures of a reward model by hand."""

from __future__ import annotations

import math

import pytest

from prefloop.data.comparisons import Ranking
from prefloop.evaluation.reward_accuracy import (
    accuracy,
    accuracy_by,
    bag_of_words,
    calibration_error,
    lead,
    longer_wins,
    pair_outcomes,
    summarise,
)

RANKINGS = [
    Ranking("a", ["x", "xx", "xxx"], [0, 1, 2], rater="r1", subset="fact"),
    Ranking("b", ["xxxx", "x"], [0, 1], rater="r2", subset="harm"),
    Ranking("c", ["x", "y"], [0, 1], rater="r1"),
]
# First prompt: two of three pairs right. Second: wrong. Third: equal scores.
SCORES = [[1.0, 2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]


def test_outcomes_of_pairs() -> None:
    assert pair_outcomes(RANKINGS, SCORES) == [(0, 0.0), (0, 1.0), (0, 1.0), (1, 0.0), (2, 0.5)]


def test_accuracy_counts_pairs_and_its_interval_holds_it() -> None:
    found = accuracy(RANKINGS, SCORES, resamples=200)
    assert found["mean"] == pytest.approx(2.5 / 5)
    assert found["pairs"] == 5
    low, high = found["ci95"]
    assert low <= 0.5 <= high


def test_a_lead_is_paired_by_prompt() -> None:
    other = [[2.0, 1.0, 0.0], [0.0, 1.0], [3.0, 3.0]]  # all three, none, half: one pair more than SCORES
    assert lead(RANKINGS, other, SCORES, resamples=200)["mean"] == pytest.approx(1 / 5)
    level = lead(RANKINGS, SCORES, [[2 * x for x in row] for row in SCORES], resamples=200)
    assert level["mean"] == 0
    assert level["ci95"] == [0, 0]  # accuracy varies with the prompts, their difference does not


def test_accuracy_by_part_leaves_out_what_has_no_name() -> None:
    by_subset = accuracy_by(RANKINGS, SCORES, lambda ranking: ranking.subset)
    assert by_subset == {
        "fact": {"accuracy": pytest.approx(2 / 3, abs=1e-6), "pairs": 3},
        "harm": {"accuracy": 0.0, "pairs": 1},
    }
    by_rater = accuracy_by(RANKINGS, SCORES, lambda ranking: ranking.rater)
    assert by_rater["r1"] == {"accuracy": pytest.approx(2.5 / 4), "pairs": 4}


def test_calibration_error_by_hand() -> None:
    # One pair of confidence s(2) = 0.88 that is right, one of confidence s(1) = 0.73 that is wrong; ten bins.
    rankings = [Ranking("a", ["x", "y"], [0, 1]), Ranking("b", ["x", "y"], [0, 1])]
    first, second = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    expected = ((1 - first) + second) / 2
    assert calibration_error(rankings, [[2.0, 0.0], [0.0, 1.0]]) == pytest.approx(expected)
    # Half right at confidence one half is calibrated, and so is a coin toss on equal scores.
    assert calibration_error(rankings, [[0.0, 0.0], [0.0, 0.0]]) == 0
    assert calibration_error([], []) == 0


def test_the_longer_text_wins_its_baseline() -> None:
    assert longer_wins(RANKINGS) == [[1.0, 2.0, 3.0], [4.0, 1.0], [1.0, 1.0]]
    messages = [[{"role": "assistant", "content": "four"}], "x"]
    assert longer_wins([Ranking("a", messages, [0, 1])]) == [[4.0, 1.0]]


def test_a_bag_of_words_learns_a_word_and_only_from_the_fitted_rows() -> None:
    fit = [Ranking(str(i), [f"sure thing {i}", f"no way {i}"], [0, 1]) for i in range(20)]
    held = [Ranking("x", ["no thanks", "sure"], [1, 0]), Ranking("y", ["unseen", "words"], [0, 1])]
    scores = bag_of_words(fit, held)
    assert scores[0][1] > scores[0][0]
    assert scores[1][0] == pytest.approx(scores[1][1])
    assert bag_of_words([], held) == [[0.0, 0.0], [0.0, 0.0]]


def test_the_summary_holds_every_figure_or_says_there_is_none() -> None:
    assert summarise(RANKINGS, [], [], resamples=10) == {"held_out_prompts": 0}
    found = summarise(RANKINGS, RANKINGS, SCORES, resamples=50)
    assert found["held_out_prompts"] == 3
    assert found["accuracy"]["mean"] == pytest.approx(0.5)
    # Longer wins: right in the second prompt, half in the third, wrong in the first's three pairs.
    assert found["baselines"]["longer_wins"]["mean"] == pytest.approx(1.5 / 5)
    assert set(found) == {"held_out_prompts", "accuracy", "ece", "baselines", "lead", "by_subset", "by_rater"}


def test_an_ensembles_members_are_measured_one_by_one() -> None:
    other = [[2.0, 1.0, 0.0], [4.0, 1.0], [3.0, 1.0]]  # all three, one, one
    found = summarise(RANKINGS, RANKINGS, SCORES, resamples=50, members=[SCORES, other])
    assert found["members"]["0"] == found["accuracy"]
    assert found["members"]["1"]["mean"] == 1.0
    # Of two members the standard deviation is half their distance: 1, 1, 0; 4, 0; 0, 2.
    assert found["disagreement"] == pytest.approx((1 + 1 + 0 + 4 + 0 + 0 + 2) / 2 / 7, abs=1e-6)


def test_calibration_is_that_of_the_log_odds() -> None:
    odds = [[2 * x for x in row] for row in SCORES]
    found = summarise(RANKINGS, RANKINGS, SCORES, resamples=50, log_odds=odds)
    assert found["ece"] == pytest.approx(calibration_error(RANKINGS, odds), abs=1e-6)
    assert found["ece"] != summarise(RANKINGS, RANKINGS, SCORES, resamples=50)["ece"]
    assert found["accuracy"] == summarise(RANKINGS, RANKINGS, SCORES, resamples=50)["accuracy"]
