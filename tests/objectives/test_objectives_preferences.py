"""DPO and Bradley-Terry against known values, by hand, and against direct transcriptions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.objectives.bradley_terry import pairwise_loss, ranking_loss
from prefloop.objectives.dpo import dpo_loss
from prefloop.objectives.pairs import pair_indices

POLICY_CHOSEN, POLICY_REJECTED = [-10.0, -12.0], [-11.0, -9.0]
REFERENCE_CHOSEN, REFERENCE_REJECTED = [-10.5, -11.0], [-10.2, -10.0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("smoothing", "expected"), [(0.0, [0.630258, 0.798139]), (0.1, [0.643258, 0.778139])]
)
def test_dpo_gives_the_known_values(smoothing: float, expected: list[float]) -> None:
    terms = dpo_loss(
        torch.tensor(POLICY_CHOSEN),
        torch.tensor(POLICY_REJECTED),
        torch.tensor(REFERENCE_CHOSEN),
        torch.tensor(REFERENCE_REJECTED),
        beta=0.1,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(terms.loss, torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(terms.chosen_reward, torch.tensor([0.05, -0.1]))
    torch.testing.assert_close(terms.rejected_reward, torch.tensor([-0.08, 0.1]))


def test_dpo_takes_a_smoothing_of_each_pair() -> None:
    columns = [
        torch.tensor(x) for x in (POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
    ]
    both = dpo_loss(*columns, beta=0.1, label_smoothing=torch.tensor([0.0, 0.1])).loss
    torch.testing.assert_close(both, torch.tensor([0.630258, 0.778139]), atol=1e-6, rtol=0)


def test_dpo_gradient_is_that_of_a_transcription_in_double_precision() -> None:
    columns = [
        torch.tensor(x, dtype=torch.float64)
        for x in (POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
    ]
    chosen, rejected = (x.clone().requires_grad_() for x in columns[:2])
    dpo_loss(chosen, rejected, *columns[2:], beta=0.1, label_smoothing=0.1).loss.sum().backward()
    for i in range(2):
        gap = 0.1 * ((chosen[i] - columns[2][i]) - (rejected[i] - columns[3][i])).item()
        # d/dx [-(1 - e) log s(x) - e log s(-x)] = -(1 - e) s(-x) + e s(x)
        slope = 0.1 * (-0.9 * sigmoid(-gap) + 0.1 * sigmoid(gap))
        assert chosen.grad is not None
        assert rejected.grad is not None
        assert chosen.grad[i].item() == pytest.approx(slope, rel=1e-12)
        assert rejected.grad[i].item() == pytest.approx(-slope, rel=1e-12)


def test_bradley_terry_by_hand() -> None:
    loss = pairwise_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
    assert loss.tolist() == pytest.approx([-math.log(sigmoid(1)), -math.log(sigmoid(-2))], rel=1e-6)


def test_a_margin_asks_for_more_and_a_soft_label_for_less() -> None:
    one = torch.tensor([1.0])
    zero = torch.tensor([0.0])
    assert pairwise_loss(one, zero, margin=0.5).item() == pytest.approx(-math.log(sigmoid(0.5)), rel=1e-6)
    soft = pairwise_loss(one, zero, probability=0.7).item()
    assert soft == pytest.approx(-0.7 * math.log(sigmoid(1)) - 0.3 * math.log(sigmoid(-1)), rel=1e-6)


def test_a_soft_label_is_best_met_by_its_own_odds() -> None:
    gap = torch.tensor([math.log(0.7 / 0.3)], requires_grad=True)
    pairwise_loss(gap, torch.zeros(1), probability=0.7).sum().backward()
    assert gap.grad is not None
    assert gap.grad.item() == pytest.approx(0, abs=1e-7)


def test_a_ranking_of_three_is_the_mean_over_its_three_pairs() -> None:
    result = ranking_loss(torch.tensor([0.5, 2.0, -1.0]), [1, 0, 2])
    expected = -sum(math.log(sigmoid(gap)) for gap in (1.5, 3.0, 1.5)) / 3
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)
    assert (int(result.correct), result.pairs, result.ties) == (3, 3, 0)


def test_ties_are_left_out_and_counted() -> None:
    result = ranking_loss(torch.tensor([0.0, 1.0, 3.0]), [0, 0, 1])
    expected = -(math.log(sigmoid(-3)) + math.log(sigmoid(-2))) / 2
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)
    assert (int(result.correct), result.pairs, result.ties) == (0, 2, 1)


def test_a_ranking_of_ties_alone_gives_no_loss_and_no_gradient() -> None:
    scores = torch.tensor([1.0, 2.0], requires_grad=True)
    result = ranking_loss(scores, [0, 0])
    result.loss.backward()
    assert result.loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.tolist() == [0, 0]
    assert (result.pairs, result.ties) == (0, 1)


def test_centering_adds_the_squared_sum_of_each_pair() -> None:
    plain = ranking_loss(torch.tensor([1.0, 0.5]), [0, 1]).loss.item()
    centred = ranking_loss(torch.tensor([1.0, 0.5]), [0, 1], centering=0.01).loss.item()
    assert centred - plain == pytest.approx(0.01 * 1.5**2, rel=1e-5)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_every_pair_is_ordered_or_a_tie(ranks: list[int]) -> None:
    pairs, ties = pair_indices(ranks)
    assert len(pairs) + ties == len(ranks) * (len(ranks) - 1) // 2
    assert all(ranks[better] < ranks[worse] for better, worse in pairs)
    assert len(set(pairs)) == len(pairs)


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=5).flatmap(
        lambda scores: st.tuples(
            st.just(scores), st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores))
        )
    )
)
def test_a_ranking_agrees_with_a_transcription(case: tuple[list[float], list[int]]) -> None:
    scores, ranks = case

    def transcription(r: Tensor) -> Tensor:
        terms = [
            torch.log1p(torch.exp(-(r[i] - r[j])))
            for i in range(len(ranks))
            for j in range(len(ranks))
            if ranks[i] < ranks[j]
        ]
        return torch.stack(terms).mean() if terms else r.sum() * 0

    own = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    other = own.detach().clone().requires_grad_()
    ranking_loss(own, ranks).loss.backward()
    transcription(other).backward()
    assert own.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(own.grad, other.grad, atol=1e-12, rtol=1e-9)
