"""PPO's parts against known values and by hand; nothing under a mask matters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.objectives.kl import AdaptiveKL, FixedKL, k1, k2, k3
from prefloop.objectives.masked import masked_mean, masked_sum, masked_whiten
from prefloop.objectives.ppo import (
    explained_variance,
    generalised_advantages,
    policy_loss,
    token_rewards,
    value_loss,
)
from prefloop.objectives.sft import sft_loss

# A prompt of one token, three completion tokens, one of padding; and a row that is wholly masked.
MASK = torch.tensor([[False, True, True, True, False], [False] * 5])


def test_estimators_of_kl_give_the_known_values() -> None:
    delta = torch.tensor(0.3)
    assert k1(delta).item() == pytest.approx(0.3)
    assert k2(delta).item() == pytest.approx(0.045)
    assert k3(delta).item() == pytest.approx(0.0408182, abs=1e-7)


def test_k1_and_k3_are_unbiased_on_an_enumerable_distribution() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    delta = policy.log() - reference.log()
    exact = (policy * delta).sum()
    torch.testing.assert_close((policy * k1(delta)).sum(), exact)
    torch.testing.assert_close((policy * k3(delta)).sum(), exact)


def test_advantages_give_the_known_values() -> None:
    values = torch.tensor([[0.5, 0.4, 0.3, 0.2]])
    rewards = torch.tensor([[-0.01, 0.0, -0.02, 1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    advantages, returns = generalised_advantages(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(advantages[0], torch.tensor([0.3726, 0.508, 0.64, 0.8]), atol=1e-4, rtol=0)
    torch.testing.assert_close(returns, advantages + values)


def test_advantages_are_the_same_between_prompt_and_padding() -> None:
    values = torch.tensor([[9.0, 0.5, 0.4, 0.3, 9.0]])
    rewards = torch.tensor([[9.0, 0.0, 0.0, 1.0, 9.0]])
    mask = MASK[:1]
    advantages, returns = generalised_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    last = 1.0 - 0.3
    middle = 0.9 * 0.3 - 0.4 + 0.9 * 0.8 * last
    first = 0.9 * 0.4 - 0.5 + 0.9 * 0.8 * middle
    torch.testing.assert_close(advantages[0], torch.tensor([0.0, first, middle, last, 0.0]))
    torch.testing.assert_close(returns[0], torch.tensor([0.0, first + 0.5, middle + 0.4, 1.0, 0.0]))


def test_the_score_is_given_once_at_the_last_real_token() -> None:
    policy = torch.full((2, 5), -1.0)
    reference = torch.full((2, 5), -1.5)
    rewards = token_rewards(torch.tensor([2.0, 7.0]), policy, reference, MASK, beta=0.1)
    torch.testing.assert_close(rewards[0], torch.tensor([0.0, -0.05, -0.05, 1.95, 0.0]))
    assert rewards[1].tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected", "clipped"),
    [
        (1.0, 1.1, -1.1, 0.0),  # within the range
        (1.0, 1.5, -1.2, 1.0),  # no credit beyond 1 + eps
        (1.0, 0.5, -0.5, 0.0),  # a good token that became less likely is pulled back
        (-1.0, 0.5, 0.8, 1.0),  # no credit below 1 - eps
        (-1.0, 1.5, 1.5, 0.0),  # a bad token that became more likely is pushed back
    ],
)
def test_clipping_takes_the_pessimistic_side(
    advantage: float, ratio: float, expected: float, clipped: float
) -> None:
    terms = policy_loss(
        torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), clip_range=0.2
    )
    assert terms.loss.item() == pytest.approx(expected)
    assert terms.clipped.item() == clipped
    assert terms.approx_kl.item() == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-6)


@pytest.mark.parametrize(("advantage", "expected"), [(-1.0, 3.0), (1.0, -1.2)])
def test_dual_clip_bounds_negative_advantages_alone(advantage: float, expected: float) -> None:
    terms = policy_loss(
        torch.tensor([math.log(10.0)]),
        torch.zeros(1),
        torch.tensor([advantage]),
        clip_range=0.2,
        dual_clip=3.0,
    )
    assert terms.loss.item() == pytest.approx(expected)


def test_a_huge_log_ratio_stays_finite() -> None:
    terms = policy_loss(torch.tensor([1000.0]), torch.zeros(1), torch.tensor([-1.0]), clip_range=0.2)
    assert torch.isfinite(terms.loss).all()
    assert torch.isfinite(terms.approx_kl).all()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, 0.5 * 0.9**2),  # within the range of the old value 0
        (0.5, 0.5 * 0.8**2),  # nearer to the return, but only 0.2 of the way counts
        (-1.0, 0.5 * 4.0),  # farther away: the full error
    ],
)
def test_value_clipping_takes_the_larger_error(value: float, expected: float) -> None:
    loss = value_loss(torch.tensor([value]), torch.zeros(1), torch.ones(1), clip_range=0.2)
    assert loss.item() == pytest.approx(expected)


def test_value_clipping_can_be_turned_off() -> None:
    loss = value_loss(torch.tensor([0.5]), torch.zeros(1), torch.ones(1), clip_range=0.0)
    assert loss.item() == pytest.approx(0.125)


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one() -> None:
    returns = torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0]])
    mask = MASK[:1]
    assert explained_variance(returns, returns, mask).item() == pytest.approx(1)
    assert explained_variance(torch.zeros(1, 5), returns, mask).item() == pytest.approx(0, abs=1e-6)


def test_whitening_gives_mean_0_and_std_1_over_real_tokens() -> None:
    values = torch.tensor([[50.0, 1.0, 2.0, 6.0, -50.0]])
    whitened = masked_whiten(values, MASK[:1])
    real = whitened[MASK[:1]]
    assert real.mean().item() == pytest.approx(0, abs=1e-6)
    assert real.std().item() == pytest.approx(1, rel=1e-5)
    kept = masked_whiten(values, MASK[:1], shift_mean=False)[MASK[:1]]
    assert kept.mean().item() == pytest.approx(3, rel=1e-5)
    assert kept.std().item() == pytest.approx(1, rel=1e-5)


def test_a_fully_masked_batch_gives_zero_and_never_nan() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    broken = torch.full((2, 3), math.nan)
    assert masked_mean(broken, nothing).item() == 0
    assert masked_sum(broken, nothing).tolist() == [0, 0]
    assert masked_whiten(broken, nothing).tolist() == [[0.0] * 3] * 2
    assert sft_loss(broken, nothing, 0).item() == 0
    advantages, returns = generalised_advantages(broken, broken, nothing, gamma=1.0, gae_lambda=0.95)
    assert advantages.abs().sum().item() == 0
    assert returns.abs().sum().item() == 0


def test_the_language_model_loss_of_micro_batches_adds_up_to_the_mean() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-4.0, -9.0]])
    trainable = torch.tensor([[True, True], [True, False]])
    assert sft_loss(logprobs, trainable, 3).item() == pytest.approx(7 / 3)
    parts = [sft_loss(logprobs[i : i + 1], trainable[i : i + 1], 3) for i in range(2)]
    assert sum(parts).item() == pytest.approx(7 / 3)


def test_adaptive_control_by_hand() -> None:
    control = AdaptiveKL(0.1, target=2.0, horizon=1000.0)
    control.update(2.2, 100)  # error 0.1
    assert control.beta == pytest.approx(0.1 * 1.01)
    control.update(10.0, 100)  # error clipped to 0.2
    assert control.beta == pytest.approx(0.1 * 1.01 * 1.02)
    control.update(0.0, 100)  # error clipped to -0.2
    assert control.beta == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)
    other = AdaptiveKL(0.5, target=2.0, horizon=1000.0)
    other.load_state_dict(control.state_dict())
    assert other.beta == control.beta


def test_a_fixed_beta_stays() -> None:
    control = FixedKL(0.1)
    control.update(50.0, 1000)
    assert control.beta == 0.1


def objective(logprobs: Tensor, values: Tensor, old: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """A whole PPO loss of one minibatch, as the trainer puts it together."""
    with torch.no_grad():
        rewards = token_rewards(scores, old, old - 0.1, mask, beta=0.1)
        advantages, returns = generalised_advantages(rewards, values, mask, gamma=0.99, gae_lambda=0.9)
        advantages = masked_whiten(advantages, mask)
    policy = masked_mean(policy_loss(logprobs, old, advantages, clip_range=0.2).loss, mask)
    return policy + 0.1 * masked_mean(value_loss(values, values.detach(), returns, clip_range=0.2), mask)


@given(st.integers(0, 2**31), st.floats(-1e6, 1e6, allow_nan=False))
def test_values_under_the_mask_change_nothing(seed: int, garbage: float) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(2, 5, generator=generator)

    logprobs, values, old, scores = draw(), draw(), draw(), draw()[:, 0]
    spoiled = [torch.where(MASK, x, torch.full_like(x, garbage)) for x in (logprobs, values, old)]
    clean = [x.clone().requires_grad_() for x in (logprobs, values)]
    dirty = [x.clone().requires_grad_() for x in spoiled[:2]]
    first = objective(*clean, old, scores, MASK)
    second = objective(*dirty, spoiled[2], scores, MASK)
    first.backward()
    second.backward()
    assert first.item() == second.item()
    for a, b in zip(clean, dirty, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)
        assert not a.grad[~MASK].any()


def test_the_gradient_is_that_of_a_transcription_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(3)
    old = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    advantages = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    new = (old + 0.4 * torch.randn(1, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    policy_loss(new, old, advantages, clip_range=0.2).loss.sum().backward()
    for t in range(4):
        ratio, a = math.exp((new[0, t] - old[0, t]).item()), advantages[0, t].item()
        outside = ratio > 1.2 if a > 0 else ratio < 0.8
        assert new.grad is not None
        assert new.grad[0, t].item() == pytest.approx(0.0 if outside else -a * ratio, rel=1e-12)
