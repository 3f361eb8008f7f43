"""Robust DPO, IPO, hinge, KTO, ORPO and SimPO: by hand, and against transcriptions in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.objectives.completions import mean_logprob
from prefloop.objectives.dpo import dpo_loss, robust_dpo_loss
from prefloop.objectives.hinge import hinge_loss
from prefloop.objectives.ipo import ipo_loss
from prefloop.objectives.kto import kto_loss, reference_point
from prefloop.objectives.orpo import log_odds, orpo_loss
from prefloop.objectives.simpo import simpo_loss

POLICY_CHOSEN, POLICY_REJECTED = [-10.0, -12.0], [-11.0, -9.0]
REFERENCE_CHOSEN, REFERENCE_REJECTED = [-10.5, -11.0], [-10.2, -10.0]
# (log pi_c - ref_c) - (log pi_r - ref_r): 0.5 + 0.8 and -1 - 1.
GAPS = [1.3, -2.0]
COLUMNS = (POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def doubles(*columns: list[float]) -> list[Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in columns]


def assert_values(found: Tensor, expected: list[float]) -> None:
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_robust_dpo_by_hand() -> None:
    terms = robust_dpo_loss(*doubles(*COLUMNS), beta=0.1, label_smoothing=0.1)
    expected = [(-0.9 * log_sigmoid(0.1 * h) + 0.1 * log_sigmoid(-0.1 * h)) / 0.8 for h in GAPS]
    assert_values(terms.loss, expected)
    assert expected == pytest.approx([0.614008, 0.823139], abs=1e-6)
    assert_values(terms.chosen_reward, [0.05, -0.1])
    assert_values(terms.rejected_reward, [-0.08, 0.1])


def test_robust_dpo_without_flips_is_dpo() -> None:
    columns = doubles(*COLUMNS)
    robust = robust_dpo_loss(*columns, beta=0.1, label_smoothing=0.0, probability=0.8).loss
    assert torch.equal(robust, dpo_loss(*columns, beta=0.1, probability=0.8).loss)


@given(st.floats(0.0, 0.45), st.floats(-6, 6))
def test_robust_dpo_is_unbiased_where_smoothing_is_not(flips: float, gap: float) -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    chosen = torch.tensor([gap], dtype=torch.float64)

    def mean_over_flips(loss: Callable[..., Tensor]) -> float:
        return (1 - flips) * loss(chosen, zero).item() + flips * loss(zero, chosen).item()

    def robust(a: Tensor, b: Tensor) -> Tensor:
        return robust_dpo_loss(a, b, zero, zero, beta=1.0, label_smoothing=flips).loss

    def smoothed(a: Tensor, b: Tensor) -> Tensor:
        return dpo_loss(a, b, zero, zero, beta=1.0, label_smoothing=flips).loss

    clean = dpo_loss(chosen, zero, zero, zero, beta=1.0).loss.item()
    assert mean_over_flips(robust) == pytest.approx(clean, rel=1e-9, abs=1e-9)
    if flips > 0.05 and abs(gap) > 0.1:
        assert mean_over_flips(smoothed) != pytest.approx(clean, rel=1e-4)


def test_ipo_by_hand() -> None:
    terms = ipo_loss(*doubles(*COLUMNS), beta=0.1)
    assert_values(terms.loss, [(1.3 - 5) ** 2, (-2.0 - 5) ** 2])
    assert_values(terms.chosen_reward, [0.05, -0.1])


def test_ipo_on_means_a_token() -> None:
    lengths = torch.tensor([5, 4]), torch.tensor([2, 3])
    columns = doubles(*COLUMNS)
    means = [mean_logprob(c, n) for c, n in zip(columns, (*lengths, *lengths), strict=True)]
    # 0.5 / 5 + 0.8 / 2 and -1 / 4 - 1 / 3.
    assert_values(ipo_loss(*means, beta=0.1).loss, [(0.5 - 5) ** 2, (-7 / 12 - 5) ** 2])


@given(st.floats(0.5, 1.0), st.floats(0.05, 2.0))
def test_ipo_is_best_met_by_a_finite_gap(probability: float, beta: float) -> None:
    best = torch.tensor([(2 * probability - 1) / (2 * beta)], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    ipo_loss(best, zero, zero, zero, beta=beta, probability=probability).loss.sum().backward()
    assert best.grad is not None
    assert best.grad.item() == pytest.approx(0, abs=1e-9)


def test_the_hinge_by_hand() -> None:
    terms = hinge_loss(*doubles(*COLUMNS), beta=0.1)
    assert_values(terms.loss, [1 - 0.13, 1 + 0.2])
    assert_values(hinge_loss(*doubles(*COLUMNS), beta=2.0).loss, [0.0, 5.0])


def test_a_soft_label_is_the_mean_over_hard_ones() -> None:
    one, two, three, four = doubles(*COLUMNS)
    losses: list[Callable[..., Tensor]] = [
        lambda *c, **k: dpo_loss(*c, beta=0.3, label_smoothing=0.1, **k).loss,
        lambda *c, **k: robust_dpo_loss(*c, beta=0.3, label_smoothing=0.2, **k).loss,
        lambda *c, **k: ipo_loss(*c, beta=0.3, **k).loss,
        lambda *c, **k: hinge_loss(*c, beta=0.3, **k).loss,
    ]
    probability = torch.tensor([0.7, 0.9], dtype=torch.float64)
    for loss in losses:
        hard = probability * loss(one, two, three, four) + (1 - probability) * loss(two, one, four, three)
        torch.testing.assert_close(loss(one, two, three, four, probability=probability), hard)


def test_kto_by_hand() -> None:
    policy, reference = doubles([-10.0, -12.0, -9.0], [-10.5, -11.0, -10.0])
    desirable = torch.tensor([True, True, False])
    terms = kto_loss(
        policy,
        reference,
        desirable,
        torch.tensor(0.4, dtype=torch.float64),
        beta=0.1,
        desirable_weight=1.3,
        undesirable_weight=0.6,
    )
    # Log-ratios 0.5, -1 and 1 against the point 0.4.
    expected = [
        1.3 - 1.3 * sigmoid(0.1 * (0.5 - 0.4)),
        1.3 - 1.3 * sigmoid(0.1 * (-1.0 - 0.4)),
        0.6 - 0.6 * sigmoid(0.1 * (0.4 - 1.0)),
    ]
    assert_values(terms.loss, expected)
    assert_values(terms.reward, [0.05, -0.1, 0.1])


def test_the_reference_point_is_the_mean_log_ratio_but_never_below_zero() -> None:
    policy = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-2.0, -1.5, -4.0], dtype=torch.float64)
    point = reference_point(policy, reference)
    assert point.item() == pytest.approx((1.0 - 0.5 + 1.0) / 3, rel=1e-12)
    assert not point.requires_grad
    assert reference_point(reference, policy).item() == 0
    nothing = reference_point(policy[:0], reference[:0])
    assert nothing.shape == ()
    assert nothing.item() == 0


def test_no_gradient_flows_through_the_reference_point() -> None:
    policy, reference = doubles([-1.0, -2.0], [-1.5, -1.0])
    policy.requires_grad_()
    point = (policy - reference).mean()
    kto_loss(policy, reference, torch.tensor([True, True]), point, beta=0.5).loss.sum().backward()
    z = point.item()
    a, b = 0.5 * (0.5 - z), 0.5 * (-1.0 - z)
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx(
        [-0.5 * sigmoid(a) * sigmoid(-a), -0.5 * sigmoid(b) * sigmoid(-b)], rel=1e-12
    )


def test_orpo_by_hand() -> None:
    chosen, rejected = doubles([math.log(0.6), math.log(0.2)], [math.log(0.3), math.log(0.5)])
    terms = orpo_loss(chosen, rejected, odds_coef=0.1)
    ratios = [(0.6 / 0.4) / (0.3 / 0.7), (0.2 / 0.8) / (0.5 / 0.5)]
    assert_values(terms.log_odds_ratio, [math.log(r) for r in ratios])
    assert_values(terms.nll, [-math.log(0.6), -math.log(0.2)])
    # -log sigmoid(log r) = log(1 + 1 / r)
    expected = [-math.log(p) + 0.1 * math.log(1 + 1 / r) for p, r in zip((0.6, 0.2), ratios, strict=True)]
    assert_values(terms.loss, expected)


@given(st.floats(-60, -1e-9))
def test_log_odds_keep_their_digits_at_both_ends(logprob: float) -> None:
    found = log_odds(torch.tensor([logprob], dtype=torch.float64)).item()
    # expm1 by its series near 0, where 1 - exp(x) has few digits left.
    complement = -logprob - logprob**2 / 2 if logprob > -1e-6 else -math.expm1(logprob)
    assert found == pytest.approx(logprob - math.log(complement), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certainty_and_impossibility_have_finite_odds_and_gradients(dtype: torch.dtype) -> None:
    logprobs = torch.tensor([0.0, -1e-12, -1e-6, -math.log(2), -50.0, -1e4], dtype=dtype, requires_grad=True)
    odds = log_odds(logprobs)
    odds.sum().backward()
    assert torch.isfinite(odds).all()
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()
    assert (odds[:-1] > odds[1:]).sum() >= 4
    # A completion without a token has a mean log-prob of 0.
    empty = mean_logprob(torch.zeros(2, dtype=dtype), torch.tensor([0, 3]))
    loss = orpo_loss(empty, torch.full((2,), -1.0, dtype=dtype), odds_coef=0.1).loss
    assert torch.isfinite(loss).all()


def test_simpo_by_hand() -> None:
    terms = simpo_loss(*doubles([-1.0, -2.0], [-1.5, -1.2]), beta=2.0, margin=0.5)
    assert_values(terms.loss, [-log_sigmoid(2 * 0.5 - 0.5), -log_sigmoid(2 * -0.8 - 0.5)])
    assert_values(terms.chosen_reward, [-2.0, -4.0])
    assert_values(terms.rejected_reward, [-3.0, -2.4])


def test_a_soft_label_of_simpo_and_orpo() -> None:
    chosen, rejected = doubles([-1.0], [-1.5])
    simpo = simpo_loss(chosen, rejected, beta=2.0, margin=0.5, probability=0.7).loss
    assert_values(simpo, [-0.7 * log_sigmoid(1 - 0.5) - 0.3 * log_sigmoid(-1 - 0.5)])
    ratio = math.log((math.e - 1) ** -1 / (math.e**1.5 - 1) ** -1)
    orpo = orpo_loss(chosen, rejected, odds_coef=0.2, probability=0.7).loss
    assert_values(orpo, [1.0 + 0.2 * (-0.7 * log_sigmoid(ratio) - 0.3 * log_sigmoid(-ratio))])


# Each paper's formula as printed, without care for rounding, of (chosen, rejected) with the rest fixed.
REFERENCE = doubles([-3.1, -2.2, -4.0], [-2.9, -3.3, -1.0])
DESIRABLE = torch.tensor([True, False, True])


def printed_dpo(c: Tensor, r: Tensor) -> Tensor:
    h = 0.3 * (torch.log(c.exp() / REFERENCE[0].exp()) - torch.log(r.exp() / REFERENCE[1].exp()))
    return -torch.log(1 / (1 + torch.exp(-h)))


def printed_robust(c: Tensor, r: Tensor) -> Tensor:
    h = 0.3 * ((c - REFERENCE[0]) - (r - REFERENCE[1]))
    stands, flipped = -torch.log(torch.sigmoid(h)), -torch.log(torch.sigmoid(-h))
    return (0.8 * stands - 0.2 * flipped) / (1 - 2 * 0.2)


def printed_ipo(c: Tensor, r: Tensor) -> Tensor:
    h = torch.log(c.exp() * REFERENCE[1].exp() / (r.exp() * REFERENCE[0].exp()))
    return (h - 1 / (2 * 0.3)) ** 2


def printed_hinge(c: Tensor, r: Tensor) -> Tensor:
    return torch.clamp(1 - 0.3 * ((c - REFERENCE[0]) - (r - REFERENCE[1])), min=0)


def printed_kto(c: Tensor, r: Tensor) -> Tensor:
    ratio = torch.log(c.exp() / REFERENCE[0].exp())
    point = (r - REFERENCE[1]).mean().clamp(min=0).detach()
    value = torch.where(  # the second of three is undesirable
        DESIRABLE, 1.2 * torch.sigmoid(0.3 * (ratio - point)), 0.7 * torch.sigmoid(0.3 * (point - ratio))
    )
    return doubles([1.2, 0.7, 1.2])[0] - value


def own_kto(c: Tensor, r: Tensor) -> Tensor:
    point = reference_point(r, REFERENCE[1])
    terms = kto_loss(
        c, REFERENCE[0], DESIRABLE, point, beta=0.3, desirable_weight=1.2, undesirable_weight=0.7
    )
    return terms.loss + 0 * r


def printed_orpo(c: Tensor, r: Tensor) -> Tensor:
    odds = [p.exp() / (1 - p.exp()) for p in (c, r)]
    return -c - 0.25 * torch.log(torch.sigmoid(torch.log(odds[0] / odds[1])))


def printed_simpo(c: Tensor, r: Tensor) -> Tensor:
    return -torch.log(torch.sigmoid(2.5 * c - 2.5 * r - 0.4))


OBJECTIVES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "dpo": (lambda c, r: dpo_loss(c, r, *REFERENCE, beta=0.3).loss, printed_dpo),
    "robust": (
        lambda c, r: robust_dpo_loss(c, r, *REFERENCE, beta=0.3, label_smoothing=0.2).loss,
        printed_robust,
    ),
    "ipo": (lambda c, r: ipo_loss(c, r, *REFERENCE, beta=0.3).loss, printed_ipo),
    "hinge": (lambda c, r: hinge_loss(c, r, *REFERENCE, beta=0.3).loss, printed_hinge),
    "kto": (own_kto, lambda c, r: printed_kto(c, r) + 0 * r),
    "orpo": (lambda c, r: orpo_loss(c, r, odds_coef=0.25).loss, printed_orpo),
    "simpo": (lambda c, r: simpo_loss(c, r, beta=2.5, margin=0.4).loss, printed_simpo),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@given(logprobs=st.lists(st.floats(-8, -0.01), min_size=6, max_size=6))
def test_value_and_gradient_are_those_of_the_printed_formula(name: str, logprobs: list[float]) -> None:
    results = []
    for loss in OBJECTIVES[name]:
        chosen, rejected = (x.requires_grad_() for x in doubles(logprobs[:3], logprobs[3:]))
        values = loss(chosen, rejected)
        values.sum().backward()
        results.append((values.detach(), chosen.grad, rejected.grad))
    for own, printed in zip(*results, strict=True):
        torch.testing.assert_close(own, printed, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    chosen, rejected = (x.requires_grad_() for x in doubles([-3.0, -2.0, -1.1], [-2.5, -3.5, -0.4]))
    if name == "kto":  # the point has no gradient of its own, so only what is outside it can be differenced
        fixed = rejected.detach()
        assert torch.autograd.gradcheck(lambda c: OBJECTIVES[name][0](c, fixed), (chosen,))
    else:
        assert torch.autograd.gradcheck(OBJECTIVES[name][0], (chosen, rejected))
