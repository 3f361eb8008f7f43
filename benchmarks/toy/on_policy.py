"""On-policy methods in expectation: every response, weighted by its probability when it was sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.toy.descent import follow
from benchmarks.toy.direct import Pairs, expected_pair_loss
from benchmarks.toy.tree import Tree
from prefloop.objectives.dpo import dpo_loss
from prefloop.objectives.grpo import token_weights
from prefloop.objectives.kl import token_penalties
from prefloop.objectives.masked import masked_sum
from prefloop.objectives.ppo import generalised_advantages, policy_loss, token_rewards, value_loss
from prefloop.objectives.reinforce_pp import returns_to_go

STEPS, RATE, CLIP, UPDATES = 600, 0.05, 0.2, 2


def expectation(terms: Tensor, tree: Tree, weight: Tensor) -> Tensor:
    """Token terms (N, T) of responses drawn with `weight` (N,): their mean over real tokens."""
    return (weight * masked_sum(terms, tree.mask)).sum() / (weight * tree.lengths).sum()


def ppo(tree: Tree, reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """PPO with a tabular critic, GAE with lambda 0.95, two clipped updates a rollout batch; (S, V) logits."""
    ref = tree.logprobs(reference)
    critic = nn.Parameter(torch.zeros(tree.count, dtype=torch.float64))

    def losses(logits: Tensor) -> Iterator[Tensor]:
        with torch.no_grad():
            old, old_values = tree.logprobs(logits), critic[tree.states]
            weight = old.sum(dim=-1).exp()
            rewards = token_rewards(reward, old, ref, tree.mask, beta=beta)
            advantages, returns = generalised_advantages(
                rewards, old_values, tree.mask, gamma=1.0, gae_lambda=0.95
            )
        for _ in range(UPDATES):
            policy = policy_loss(tree.logprobs(logits), old, advantages, clip_range=CLIP).loss
            value = value_loss(critic[tree.states], old_values, returns, clip_range=CLIP)
            yield expectation(policy + value, tree, weight)

    return follow(reference, losses, steps=STEPS, rate=RATE, others=[critic])


def reinforce(tree: Tree, reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """REINFORCE++ without whitening: returns-to-go with the KL in each token's reward; (S, V) logits."""
    ref = tree.logprobs(reference)

    def losses(logits: Tensor) -> Iterator[Tensor]:
        with torch.no_grad():
            old = tree.logprobs(logits)
            weight = old.sum(dim=-1).exp()
            advantages = returns_to_go(token_rewards(reward, old, ref, tree.mask, beta=beta), tree.mask)
        for _ in range(UPDATES):
            loss = policy_loss(tree.logprobs(logits), old, advantages, clip_range=CLIP).loss
            yield expectation(loss, tree, weight)

    return follow(reference, losses, steps=STEPS, rate=RATE)


def groups_of_two(
    tree: Tree,
    reference: Tensor,
    reward: Tensor,
    beta: float,
    pairs: Pairs,
    advantages: Callable[[Tensor], Tensor],
    *,
    normaliser: str = "constant",
    estimator: str = "",
) -> Tensor:
    """A group method with two samples a prompt; (S, V) logits.

    Args:
        pairs: every pair of samples.
        advantages: of rewards (M, 2).
        normaliser: see `token_weights`; its constant is 1 here, its counts are those of one pair.
        estimator: of the KL as a loss, see `token_penalties`; empty puts the KL into the reward.
    """
    ref = tree.logprobs(reference)
    both = torch.stack([pairs.first, pairs.second], dim=1)  # (M, 2)
    rows = both.flatten()
    mask = tree.mask[rows]
    weights = token_weights(mask, normaliser=normaliser, rows=2, tokens=2, length=1)

    def losses(logits: Tensor) -> Iterator[Tensor]:
        with torch.no_grad():
            old = tree.logprobs(logits)
            chance = old.sum(dim=-1).exp()[both].prod(dim=1).repeat_interleave(2)
            shaped = reward if estimator else reward - beta * (old - ref).sum(dim=-1)
            advantage = advantages(shaped[both]).flatten().unsqueeze(1).expand_as(mask)
        for _ in range(UPDATES):
            logprobs = tree.logprobs(logits)[rows]
            loss = policy_loss(logprobs, old[rows], advantage, clip_range=CLIP).loss
            if estimator:
                loss = loss + beta * token_penalties(logprobs - ref[rows], mask, estimator)
            yield (chance * (weights * loss).sum(dim=-1)).sum()

    return follow(reference, losses, steps=STEPS, rate=RATE)


def online_dpo(tree: Tree, reference: Tensor, reward: Tensor, beta: float, pairs: Pairs) -> Tensor:
    """DPO on pairs of the present policy, labelled by a Bradley-Terry rater; (S, V) logits."""
    ref = tree.log_distribution(reference)

    def losses(logits: Tensor) -> Iterator[Tensor]:
        log_policy = tree.log_distribution(logits)
        yield expected_pair_loss(
            log_policy,
            ref,
            log_policy,
            pairs,
            lambda a, b, c, d, p: dpo_loss(a, b, c, d, beta=beta, probability=p).loss,
        )

    return follow(reference, losses, steps=STEPS, rate=RATE)
