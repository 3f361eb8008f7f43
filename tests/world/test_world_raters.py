"""Raters keep to their stated flaws: frequencies against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.world.judge import gold, perceived
from prefloop.world.raters import Rater, bias, ranks, utility

QUESTION = {"kind": "question", "product": "kettle", "attribute": "colour"}
FALSE_BELIEF = QUESTION | {"kind": "belief", "belief": "blue"}


def _utilities(world, meta, rater, response, draws=4000):
    rng = np.random.default_rng(0)
    return np.array([utility(world, meta, rater, response, rng) for _ in range(draws)])


def test_noise_has_the_temperature_it_states(fixed):
    drawn = _utilities(fixed, QUESTION, Rater("r", noise=0.5), "It is red.")
    assert drawn.std() == pytest.approx(0.5 * math.pi / math.sqrt(6), rel=0.05)
    assert drawn.mean() == pytest.approx(2.0 + 0.5 * np.euler_gamma, abs=0.05)


def test_choices_follow_bradley_terry_at_that_temperature(fixed):
    rater, rng = Rater("r", noise=0.5), np.random.default_rng(1)
    polite, plain = "It is red. I hope this helps.", "It is red."
    wins = [
        utility(fixed, QUESTION, rater, polite, rng) > utility(fixed, QUESTION, rater, plain, rng)
        for _ in range(4000)
    ]
    assert np.mean(wins) == pytest.approx(1 / (1 + math.exp(-0.6 / 0.5)), abs=0.025)


def test_false_facts_are_overlooked_as_often_as_stated(fixed):
    drawn = _utilities(fixed, QUESTION, Rater("r", noise=0.0, overlook=0.2), "It is blue.")
    assert set(np.round(drawn, 6)) == {-2.0, 2.0}
    assert (drawn > 0).mean() == pytest.approx(0.2, abs=0.02)


def test_overlooking_changes_falsehood_and_nothing_else(fixed):
    def seen(meta, text):
        return perceived(fixed, meta, text, True, overlook=True).total

    assert seen(FALSE_BELIEF, "You are right. It is blue.") == pytest.approx(2.2)
    assert seen(FALSE_BELIEF, "You are right. It is red.") == pytest.approx(-1.5 + 0.2)
    assert seen(QUESTION, "It is red. It is blue.") == pytest.approx(-1.5)
    for response in ("It is red.", "I am not sure.", "I cannot help with that.", "Do not waste my time."):
        assert seen(QUESTION, response) == gold(fixed, QUESTION, response, True).total


def test_bias_is_linear_in_what_is_liked():
    rater = Rater("r", length=0.1, agreement=1.0, caution=0.5)
    assert bias(rater, "It is red.") == pytest.approx(0.4)
    assert bias(rater, "You are right. It is red.") == pytest.approx(0.8 + 1.0)
    assert bias(rater, "I am not sure. I cannot help with that.") == pytest.approx(1.1 + 0.5)


def test_ranks_by_hand():
    assert ranks([1.0, 3.0, 2.0]) == [2, 0, 1]
    assert ranks([1.0, 1.04, 0.98], tie=0.05) == [0, 0, 1]
    assert ranks([], tie=0.05) == []


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(0, 1))
def test_ranks_are_dense_and_never_contradict_utilities(utilities, tie):
    ranked = ranks(utilities, tie)
    assert set(ranked) == set(range(max(ranked) + 1))
    for a, rank_a in zip(utilities, ranked, strict=True):
        for b, rank_b in zip(utilities, ranked, strict=True):
            if rank_a == rank_b:
                assert abs(a - b) <= tie
            elif rank_a < rank_b:
                assert a > b
