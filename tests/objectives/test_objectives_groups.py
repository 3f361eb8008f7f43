"""Critic-free objectives: known values, exact gradients on what can be enumerated, transcriptions, masks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.objectives.best_of_n import best_of, kl_bound
from prefloop.objectives.dpo import dpo_loss
from prefloop.objectives.grpo import all_equal, group_advantages, token_weights
from prefloop.objectives.kl import ScheduledKL, token_penalties
from prefloop.objectives.masked import masked_sum
from prefloop.objectives.online_dpo import preference
from prefloop.objectives.overlong import overlong_penalty
from prefloop.objectives.ppo import policy_loss, token_rewards
from prefloop.objectives.reinforce_pp import returns_to_go, whitened
from prefloop.objectives.rloo import leave_one_out_advantages

REWARDS = torch.tensor([[1.0, 2.0, 3.0, 4.0]])


def test_group_advantages_give_the_known_values() -> None:
    found = group_advantages(REWARDS)
    expected = torch.tensor([[-1.161805, -0.387268, 0.387268, 1.161805]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(group_advantages(REWARDS, scale="none"), REWARDS - 2.5)
    both = torch.tensor([[1.0, 3.0], [10.0, 12.0]], dtype=torch.float64)
    # All four: mean 6.5, squares 30.25 + 12.25 + 12.25 + 30.25 = 85, over 3.
    scaled = torch.tensor([[-1.0, 1.0]] * 2, dtype=torch.float64) / (math.sqrt(85 / 3) + 1e-4)
    torch.testing.assert_close(group_advantages(both, scale="batch"), scaled)


def test_leave_one_out_advantages_give_the_known_values() -> None:
    found = leave_one_out_advantages(REWARDS)
    expected = torch.tensor([[-2.0, -0.666667, 0.666667, 2.0]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out_advantages(torch.ones(3, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_have_an_advantage_of_exactly_zero(dtype: torch.dtype, size: int) -> None:
    # 0.1 three times has a mean that is not 0.1.
    rewards = torch.full((2, size), 0.1, dtype=dtype)
    rewards[1, 0] = 0.5
    for found in (
        *(group_advantages(rewards, scale=scale) for scale in ("group", "batch", "none")),
        leave_one_out_advantages(rewards),
    ):
        assert found.dtype == dtype
        assert found[0].tolist() == [0.0] * size
        assert found[1].abs().min() > 0
    assert all_equal(rewards).tolist() == [True, False]
    assert group_advantages(torch.ones(1, 1)).tolist() == [[0.0]]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6), st.floats(-50, 50))
def test_a_shift_of_all_rewards_changes_no_advantage(values: list[float], shift: float) -> None:
    rewards = torch.tensor([values], dtype=torch.float64)
    for advantages in (lambda r: group_advantages(r, scale="none"), leave_one_out_advantages):
        torch.testing.assert_close(advantages(rewards + shift), advantages(rewards), atol=1e-9, rtol=0)
        assert advantages(rewards).sum().item() == pytest.approx(0, abs=1e-9)


def test_returns_to_go_by_hand() -> None:
    mask = torch.tensor([[False, True, True, True, False]])
    zero = torch.zeros(1, 5)
    delta = torch.tensor([[9.0, 0.5, -0.2, 0.1, 9.0]])
    rewards = token_rewards(torch.tensor([2.0]), delta, zero, mask, beta=0.1)
    expected = torch.tensor([[0.0, 2 - 0.04, 2 + 0.01, 2 - 0.01, 0.0]])
    torch.testing.assert_close(returns_to_go(rewards, mask), expected)
    white = whitened(expected, mask)[mask]
    assert white.mean().item() == pytest.approx(0, abs=1e-4)
    assert white.std().item() == pytest.approx(1, rel=1e-3)
    assert whitened(torch.full((1, 5), 0.1), mask).tolist() == [[0.0] * 5]


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0.0), (16, 0.0), (18, -0.5), (19, -0.75), (20, -1.0), (30, -1.0)]
)
def test_the_overlong_penalty_by_hand(length: int, expected: float) -> None:
    assert overlong_penalty(torch.tensor([length]), limit=20, cache=4).tolist() == [expected]


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"), [(1.0, 1.25, -1.25), (1.0, 1.5, -1.28), (-1.0, 0.7, 0.8)]
)
def test_clip_higher_widens_the_upper_side_alone(advantage: float, ratio: float, expected: float) -> None:
    terms = policy_loss(
        torch.tensor([math.log(ratio)]),
        torch.zeros(1),
        torch.tensor([advantage]),
        clip_range=0.2,
        clip_range_high=0.28,
    )
    assert terms.loss.item() == pytest.approx(expected)


def test_without_a_clip_range_the_ratio_counts_as_it_is() -> None:
    for ratio in (0.1, 10.0):
        new = torch.tensor([math.log(ratio)])
        for advantage in (-1.0, 1.0):
            terms = policy_loss(new, torch.zeros(1), torch.tensor([advantage]), clip_range=0.0)
            assert terms.loss.item() == pytest.approx(-advantage * ratio)
            assert terms.clipped.item() == 0


def test_normalisers_by_hand() -> None:
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    options = {"rows": 2, "tokens": 4, "length": 10}
    by = {
        name: token_weights(mask, normaliser=name, **options)[:, 1]  # type: ignore[arg-type]
        for name in ("sequence", "tokens", "constant")
    }
    assert by["sequence"].tolist() == pytest.approx([1 / 6, 1 / 2])
    assert by["tokens"].tolist() == pytest.approx([1 / 4, 1 / 4])
    assert by["constant"].tolist() == pytest.approx([1 / 20, 1 / 20])
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert token_weights(nothing, normaliser="sequence", rows=1, tokens=0, length=1).tolist() == [[0.0] * 3]


def test_a_scheduled_beta_by_hand() -> None:
    control = ScheduledKL(0.1, final=0.4, steps=4)
    seen = []
    for step in range(4):
        seen.append(control.beta)
        control.update(9.0, 100)
        if step == 1:
            other = ScheduledKL(0.1, final=0.4, steps=4)
            other.load_state_dict(control.state_dict())
            control = other
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_best_of_n_takes_the_first_of_equal_scores() -> None:
    assert best_of(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -1.0, 5.0]])).tolist() == [1, 0, 2]
    assert kl_bound(1) == 0
    assert kl_bound(4) == pytest.approx(math.log(4) - 3 / 4)
    assert kl_bound(2, rounds=2) == kl_bound(4)


def test_the_bound_is_the_kl_of_best_of_n_on_many_outcomes() -> None:
    # Equally likely, distinct scores: the best of n of K is outcome k with ((k + 1)^n - k^n) / K^n.
    outcomes, n = 20000, 4
    k = torch.arange(outcomes, dtype=torch.float64) / outcomes
    best = (k + 1 / outcomes) ** n - k**n
    kl = (best * (best * outcomes).log()).sum().item()
    assert kl < kl_bound(n)
    assert kl == pytest.approx(kl_bound(n), abs=1e-3)


# What can be enumerated: two tokens of three kinds, nine completions, float64.
SEQUENCES = torch.tensor(list(itertools.product(range(3), repeat=2)))
EVERY = torch.ones(9, 2, dtype=torch.bool)
BETA = 0.3


def table(seed: int) -> Tensor:
    """Logits: row 0 for the first token, row 1 + t for the second after t."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, generator=generator, dtype=torch.float64)


def logprobs(logits: Tensor) -> Tensor:
    """(9, 2) log-probs of each completion's tokens."""
    rows = torch.log_softmax(logits, dim=-1)
    first, second = SEQUENCES.T
    return torch.stack([rows[0, first], rows[1 + first, second]], dim=-1)


SCORES = torch.randn(9, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
REFERENCE = logprobs(table(1))


def exact(logits: Tensor, beta: float) -> Tensor:
    """E[score] - beta KL by summing over all completions."""
    own = logprobs(logits).sum(dim=-1)
    return (own.exp() * (SCORES - beta * (own - REFERENCE.sum(dim=-1)))).sum()


def gradient(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(function(logits), logits)[0]


def pairs_loss(logits: Tensor, advantages: Callable[[Tensor], Tensor]) -> Tensor:
    """Expected loss over all groups of two, KL in the reward, plain sums over tokens."""
    new = logprobs(logits)
    old = new.detach()
    rewards = SCORES - BETA * (old - REFERENCE).sum(dim=-1)
    i, j = torch.cartesian_prod(torch.arange(9), torch.arange(9)).T
    groups = torch.stack([i, j], dim=-1)  # (81, 2)
    given_ = advantages(rewards[groups]).flatten()
    rows = groups.flatten()
    mask = EVERY[rows]
    terms = policy_loss(new[rows], old[rows], given_.unsqueeze(-1) * mask, clip_range=0.2)
    weights = token_weights(mask, normaliser="constant", rows=2, tokens=4, length=1)
    likely = old.sum(dim=-1).exp()
    return (
        likely[rows].view(-1, 2).prod(dim=-1) * masked_sum(weights * terms.loss, mask).view(-1, 2).sum(-1)
    ).sum()


def test_the_leave_one_out_gradient_is_that_of_the_exact_objective() -> None:
    logits = table(0)
    found = gradient(lambda x: pairs_loss(x, leave_one_out_advantages), logits)
    torch.testing.assert_close(found, -gradient(lambda x: exact(x, BETA), logits), atol=1e-12, rtol=0)


def test_the_group_gradient_without_division_is_a_share_of_the_exact_one() -> None:
    logits = table(0)
    found = gradient(lambda x: pairs_loss(x, lambda r: group_advantages(r, scale="none")), logits)
    # A completion is part of its own baseline: (G - 1) / G of the gradient is left.
    expected = -0.5 * gradient(lambda x: exact(x, BETA), logits)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_the_gradient_of_returns_to_go_is_that_of_the_exact_objective() -> None:
    logits = table(0)

    def loss(x: Tensor) -> Tensor:
        new = logprobs(x)
        old = new.detach()
        rewards = token_rewards(SCORES, old, REFERENCE, EVERY, beta=BETA)
        terms = policy_loss(new, old, returns_to_go(rewards, EVERY), clip_range=0.2)
        return (old.sum(dim=-1).exp() * terms.loss.sum(dim=-1)).sum()

    expected = -gradient(lambda x: exact(x, BETA), logits)
    torch.testing.assert_close(gradient(loss, logits), expected, atol=1e-12, rtol=0)


def penalty(logits: Tensor, estimator: str) -> Tensor:
    new = logprobs(logits)
    likely = new.detach().sum(dim=-1).exp()
    return (likely * token_penalties(new - REFERENCE, EVERY, estimator).sum(dim=-1)).sum()


def test_of_the_estimators_as_a_loss_k2_of_the_whole_completion_has_the_gradient_of_the_kl() -> None:
    logits = table(0)
    kl = gradient(lambda x: exact(x, 0.0) - exact(x, 1.0), logits)
    torch.testing.assert_close(gradient(lambda x: penalty(x, "k2_sequence"), logits), kl, atol=1e-12, rtol=0)
    assert gradient(lambda x: penalty(x, "k1"), logits).abs().max() < 1e-12
    for estimator in ("k2", "k3"):
        assert (gradient(lambda x, e=estimator: penalty(x, e), logits) - kl).abs().max() > 1e-2  # type: ignore[misc]
    with pytest.raises(ValueError, match="no estimator"):
        penalty(logits, "k4")


def online_dpo_loss(logits: Tensor, labels: str) -> Tensor:
    """Expected over all pairs of the policy's own completions and, for "sampled", over the labels."""
    new = logprobs(logits).sum(dim=-1)
    anchor = REFERENCE.sum(dim=-1)
    likely = new.detach().exp()
    i, j = torch.cartesian_prod(torch.arange(9), torch.arange(9)).T
    scores = torch.stack([SCORES[i], SCORES[j]], dim=-1)
    total = torch.zeros((), dtype=torch.float64)
    middles = (torch.arange(500, dtype=torch.float64) + 0.5) / 500 if labels == "sampled" else [None]
    for middle in middles:
        draws = None if middle is None else middle.expand(81)
        better = preference(scores, labels, draws)
        terms = dpo_loss(new[i], new[j], anchor[i], anchor[j], beta=BETA, label_smoothing=1 - better)
        total = total + (likely[i] * likely[j] * terms.loss).sum() / len(middles)
    return total


@pytest.mark.parametrize(("labels", "tolerance"), [("soft", 1e-12), ("sampled", 1e-3)])
def test_online_dpo_rests_at_the_optimum_of_the_reward_under_a_kl(labels: str, tolerance: float) -> None:
    # pi_ref exp(r / beta), as logits of the table: the first token's sum over the second.
    weight = (REFERENCE.sum(dim=-1) + SCORES / BETA).exp().view(3, 3)
    optimum = torch.cat([weight.sum(dim=-1).log().unsqueeze(0), weight.log()])
    assert gradient(lambda x: exact(x, BETA), optimum).abs().max() < 1e-12
    assert gradient(lambda x: online_dpo_loss(x, labels), optimum).abs().max() < tolerance
    assert gradient(lambda x: online_dpo_loss(x, labels), table(0)).abs().max() > 1e-2
    if labels == "soft":
        assert gradient(lambda x: online_dpo_loss(x, "hard"), optimum).abs().max() > 1e-2


def test_labels_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 3.0]])
    assert preference(scores, "hard").tolist() == [1.0, 0.0, 0.5]
    p = 1 / (1 + math.exp(-1))
    assert preference(scores, "soft").tolist() == pytest.approx([p, 1 - p, 0.5])
    draws = torch.tensor([p - 0.01, p - 0.01, 0.6])
    assert preference(scores, "sampled", draws).tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="need draws"):
        preference(scores, "sampled")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASK = torch.tensor([[False, True, True, True], [False, True, False, False], [False, True, True, False]])
MASK = torch.cat([MASK, torch.zeros(1, 4, dtype=torch.bool)])  # and a row that is wholly masked


def composed(
    new: Tensor, old: Tensor, reference: Tensor, rewards: Tensor, normaliser: str, estimator: str
) -> Tensor:
    """The loss of two groups of two, as the trainer puts it together."""
    advantages = group_advantages(rewards).reshape(-1, 1) * MASK
    terms = policy_loss(new, old, advantages, clip_range=0.2, clip_range_high=0.28)
    weights = token_weights(MASK, normaliser=normaliser, rows=4, tokens=int(MASK.sum()), length=5)
    penalties = token_penalties(new - reference, MASK, estimator)
    return masked_sum(weights * (terms.loss + BETA * penalties), MASK).sum()


def transcribed(
    new: Tensor, old: Tensor, reference: Tensor, rewards: Tensor, normaliser: str, estimator: str
) -> Tensor:
    """GRPO's eq. 3 (DAPO's eq. 12, Dr. GRPO's section 3.2) a token at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for group in range(2):
        members = rewards[group]
        mean = sum(members.tolist()) / 2
        std = math.sqrt(sum((r - mean) ** 2 for r in members.tolist()))
        for k in range(2):
            row = 2 * group + k
            advantage = (members[k].item() - mean) / (std + 1e-4)
            real = [t for t in range(4) if MASK[row, t]]
            whole = sum((new[row, t] - reference[row, t] for t in real), torch.zeros((), dtype=torch.float64))
            share = {
                "sequence": 1 / (4 * max(len(real), 1)),
                "tokens": 1 / int(MASK.sum()),
                "constant": 1 / (4 * 5),
            }[normaliser]
            for t in real:
                ratio = torch.exp(new[row, t] - old[row, t])
                clipped = torch.clamp(ratio, 0.8, 1.28)
                gain = torch.minimum(ratio * advantage, clipped * advantage)
                back = reference[row, t] - new[row, t]
                kl = {
                    "k1": -back,
                    "k2": back**2 / 2,
                    "k3": torch.exp(back) - back - 1,
                    "k2_sequence": whole**2 / 2 / len(real),
                }[estimator]
                total = total - share * (gain - BETA * kl)
    return total


@pytest.mark.parametrize("normaliser", ["sequence", "tokens", "constant"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k2_sequence"])
def test_loss_and_gradient_are_those_of_a_transcription(normaliser: str, estimator: str) -> None:
    old, reference, rewards = draw(1, 4, 4), draw(2, 4, 4), draw(3, 2, 2)
    start = old + 0.3 * draw(4, 4, 4)
    for function in (composed, transcribed):
        new = start.clone().requires_grad_()
        loss = function(new, old, reference, rewards, normaliser, estimator)
        loss.backward()
        if function is composed:
            value, slope = loss.item(), new.grad
    assert value == pytest.approx(loss.item(), abs=1e-12)
    torch.testing.assert_close(slope, new.grad, atol=1e-12, rtol=0)


@given(
    st.integers(0, 2**31),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.sampled_from(["sequence", "tokens", "constant"]),
    st.sampled_from(["k1", "k2", "k3", "k2_sequence"]),
)
def test_values_under_the_mask_change_no_group_loss(
    seed: int, garbage: float, normaliser: str, estimator: str
) -> None:
    old, reference, rewards = draw(seed, 4, 4), draw(seed + 1, 4, 4), draw(seed + 2, 2, 2)
    new = old + 0.3 * draw(seed + 3, 4, 4)
    losses, slopes = [], []
    for fill in (0.0, garbage):
        spoiled = [torch.where(MASK, x, torch.full_like(x, fill)) for x in (new, old, reference)]
        spoiled[0].requires_grad_()
        loss = composed(*spoiled, rewards, normaliser, estimator)  # type: ignore[arg-type]
        loss.backward()
        losses.append(loss.item())
        slopes.append(spoiled[0].grad)
    assert losses[0] == losses[1]
    assert torch.equal(slopes[0], slopes[1])
    assert not slopes[0][~MASK].any()
    # Micro-batches of one row add up to the update.
    parts = [
        masked_sum(
            token_weights(MASK[i : i + 1], normaliser=normaliser, rows=4, tokens=int(MASK.sum()), length=5)
            * new[i : i + 1],
            MASK[i : i + 1],
        )
        for i in range(4)
    ]
    whole = token_weights(MASK, normaliser=normaliser, rows=4, tokens=int(MASK.sum()), length=5)
    torch.testing.assert_close(torch.cat(parts), masked_sum(whole * new, MASK))
