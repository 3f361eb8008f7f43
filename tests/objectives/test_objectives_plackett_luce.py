"""Plackett-Luce by hand, against a sum over all orders, and against the paper's product."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.objectives import bradley_terry, plackett_luce
from prefloop.objectives.plackett_luce import choice_losses, ranking_loss

SCORES = st.lists(st.floats(-5, 5), min_size=2, max_size=5)


def plackett(scores: Tensor, order: tuple[int, ...]) -> Tensor:
    """Plackett 1975: the product over places of exp(r) over the sum of exp(r) of those not yet placed."""
    probability = scores.new_ones(())
    for place, item in enumerate(order):
        probability = probability * scores[item].exp() / scores[list(order[place:])].exp().sum()
    return probability


def test_three_items_by_hand() -> None:
    # exp(r) = 1, 2, 3 and the order 2, 0, 1: chosen with 3/6, then 1/3.
    scores = torch.tensor([0.0, math.log(2), math.log(3)], dtype=torch.float64)
    losses = choice_losses(scores, [1, 2, 0])
    assert sorted(losses.tolist()) == pytest.approx([math.log(2), math.log(3)], rel=1e-12)
    found = ranking_loss(scores, [1, 2, 0])
    assert found.loss.item() == pytest.approx((math.log(2) + math.log(3)) / 2, rel=1e-12)
    # Of the pairs 2 > 0, 2 > 1 and 0 > 1 the scores order the last one wrongly.
    assert (int(found.correct), found.pairs, found.ties) == (2, 3, 0)


def test_ties_by_hand() -> None:
    # exp(r) = 1, 2, 3, 4 and ranks 0, 0, 1, 1. The first is chosen from itself and the last two: 1/8; so is
    # the second: 2/9. The two at the bottom say nothing.
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log()
    found = ranking_loss(scores, [0, 0, 1, 1])
    assert found.loss.item() == pytest.approx((math.log(8) + math.log(9 / 2)) / 2, rel=1e-12)
    assert (int(found.correct), found.pairs, found.ties) == (0, 4, 2)


@given(st.permutations(range(5)), st.lists(st.floats(-3, 3), min_size=5, max_size=5))
def test_choices_multiply_to_placketts_probability(order: list[int], values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    ranks = [order.index(item) for item in range(5)]
    found = choice_losses(scores, ranks).sum().item()
    assert found == pytest.approx(-math.log(plackett(scores, tuple(order)).item()), rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.integers(0, 3))
def test_a_choice_has_the_probability_of_all_orders_that_agree(values: list[float], chosen: int) -> None:
    # One item above two tied ones, a fourth tied with it: it precedes the two, wherever the fourth stands.
    scores = torch.tensor(values, dtype=torch.float64)
    fellow, *below = [i for i in range(4) if i != chosen]
    ranks = [1 if i in below else 0 for i in range(4)]
    agree = [
        order
        for order in itertools.permutations(range(4))
        if all(order.index(chosen) < order.index(other) for other in below)
    ]
    expected = -math.log(sum(plackett(scores, order).item() for order in agree))
    place = sorted((chosen, fellow)).index(chosen)
    assert choice_losses(scores, ranks)[place].item() == pytest.approx(expected, rel=1e-9)


@given(
    st.floats(-5, 5), st.floats(-5, 5), st.sampled_from([[0, 1], [1, 0]]), st.floats(0, 1), st.floats(0, 2)
)
def test_two_items_are_bradley_terry(
    first: float, second: float, ranks: list[int], probability: float, margin: float
) -> None:
    terms = []
    for objective in (bradley_terry, plackett_luce):
        scores = torch.tensor([first, second], dtype=torch.float64, requires_grad=True)
        term = objective.ranking_loss(scores, ranks, centering=0.01, margin=margin, probability=probability)
        term.loss.backward()
        terms.append((term, scores.grad))
    (one, one_grad), (other, other_grad) = terms
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(one_grad, other_grad, atol=1e-12, rtol=1e-12)
    assert (int(one.correct), one.pairs, one.ties) == (int(other.correct), other.pairs, other.ties)


@given(SCORES.flatmap(lambda s: st.tuples(st.just(s), st.permutations(range(len(s))))))
def test_the_gradient_is_that_of_a_transcription(case: tuple[list[float], list[int]]) -> None:
    values, order = case
    own = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    other = own.detach().clone().requires_grad_()
    ranking_loss(own, [order.index(i) for i in range(len(order))]).loss.backward()
    (-plackett(other, tuple(order)).log() / (len(order) - 1)).backward()
    assert own.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(own.grad, other.grad, atol=1e-10, rtol=1e-8)


@given(
    SCORES.flatmap(
        lambda s: st.tuples(st.just(s), st.lists(st.integers(0, 2), min_size=len(s), max_size=len(s)))
    )
)
def test_autograd_agrees_with_differences_also_with_ties(case: tuple[list[float], list[int]]) -> None:
    values, ranks = case
    scores = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: ranking_loss(r, ranks, centering=0.01, margin=0.2).loss, scores)


def test_tied_scores_are_not_pulled_together() -> None:
    # The two at the top differ by 4; what they feel from the one below depends on their own score alone.
    scores = torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64, requires_grad=True)
    ranking_loss(scores, [0, 0, 1]).loss.backward()
    apart = torch.tensor([2.0, 5.0, 0.0], dtype=torch.float64, requires_grad=True)
    ranking_loss(apart, [0, 0, 1]).loss.backward()
    assert scores.grad is not None
    assert apart.grad is not None
    assert scores.grad[0].item() == pytest.approx(apart.grad[0].item(), rel=1e-12)


def test_a_ranking_of_ties_alone_gives_no_loss_and_no_gradient() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    found = ranking_loss(scores, [0, 0, 0])
    found.loss.backward()
    assert found.loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.tolist() == [0, 0, 0]
    assert (found.pairs, found.ties) == (0, 3)


def test_scores_far_apart_stay_finite() -> None:
    scores = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    loss = ranking_loss(scores, [0, 1, 2]).loss
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
