"""GRPO, RLOO and REINFORCE++: a policy improves on groups of its own completions, without a critic.

One trainer; what sets the methods apart, their advantages, is in objectives/: grpo.py, rloo.py and
reinforce_pp.py.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefloop.config.groups import GroupConfig
from prefloop.config.grpo import GRPOConfig
from prefloop.config.reinforce import ReinforceConfig
from prefloop.objectives.grpo import all_equal, group_advantages, token_weights
from prefloop.objectives.kl import token_penalties
from prefloop.objectives.masked import masked_sum
from prefloop.objectives.ppo import policy_loss, token_rewards
from prefloop.objectives.reinforce_pp import returns_to_go, whitened
from prefloop.objectives.rloo import leave_one_out_advantages
from prefloop.training.experience import Experience, Scored, behaviour_logprobs, rollout_figures
from prefloop.training.figures import share
from prefloop.training.loop import Part
from prefloop.training.noise import permutation
from prefloop.training.on_policy import OnPolicyTrainer
from prefloop.training.passes import as_batch


@dataclass(frozen=True)
class GroupExperience(Experience):
    """Adds, each (B, T): log-probs under the reference (the policy's own without a KL), and rewards or
    advantages."""

    reference: Tensor
    advantages: Tensor


class GroupTrainer(OnPolicyTrainer[GroupExperience]):
    """Improves a policy against a reward, `group_size` completions a prompt; see OnPolicyTrainer."""

    experience = GroupExperience
    config: GroupConfig

    @property
    def group_size(self) -> int:
        return self.config.group_size

    @abstractmethod
    def advantages(self, scores: Tensor, delta: Tensor, mask: Tensor, beta: float) -> Tensor:
        """The method's advantages, (B, T).

        Args:
            scores: (B,) float. delta: (B, T) float, log pi - log pi_ref. mask: (B, T) bool.
            beta: the KL's weight in the reward; 0 where it stands in the loss.
        """

    @torch.no_grad()
    def collect(self, step: int) -> tuple[GroupExperience, dict[str, float]]:
        """Samples and scores the groups of 0-based `step`. Figures are of all that was sampled."""
        config, beta = self.config, self.controller.beta
        self.policy.eval()
        scored, figures = self._sample(step)
        batch = as_batch(scored.rollouts, int(self.tokenizer.pad_token_id)).to(self.device)
        logprobs, entropy = self.policy_logprobs(batch)
        reference = self.reference_logprobs(batch) if config.weighs_kl else None
        figures |= rollout_figures(scored, batch.wanted, logprobs, entropy, reference, beta)
        behaviour = behaviour_logprobs(scored.rollouts, batch)
        figures |= self.gap.figures(logprobs, behaviour, batch.wanted)
        anchor = logprobs if reference is None else reference
        taken = self._informative(scored)
        kept = [row for row in range(len(scored.prompts)) if taken[row // config.group_size]]
        none = torch.zeros_like(logprobs)
        experience = GroupExperience(batch, logprobs, behaviour, anchor, none).rows(kept)
        advantages = self.advantages(
            scored.scores[kept].to(self.device),
            experience.logprobs - experience.reference,
            experience.batch.wanted,
            beta if config.kl_in == "reward" else 0.0,
        )
        return dataclasses.replace(experience, advantages=advantages), figures

    def parts(self, experience: GroupExperience, rows: Sequence[int], step: int) -> Iterator[Part]:
        """The clipped policy loss and, where it stands in the loss, the KL; normalised over `rows`."""
        config = self.config
        tokens = max(int(experience.batch.wanted[list(rows)].sum()), 1)
        in_loss = config.kl_in == "loss" and config.weighs_kl
        for group in self.passes.groups(experience.batch, rows):
            picked = experience.rows(group)
            mask = picked.batch.wanted
            logprobs, _ = self.passes.logprobs(self.policy, picked.batch)
            terms = policy_loss(
                logprobs,
                picked.logprobs,
                picked.advantages,
                clip_range=config.clip_range_low,
                clip_range_high=config.clip_range_high,
                dual_clip=config.dual_clip,
            )
            weights = token_weights(
                mask,
                normaliser=config.normaliser,
                rows=len(rows),
                tokens=tokens,
                length=config.loss_length or config.sampling.max_new_tokens,
            )
            loss = policy = masked_sum(weights * self.gap.weights(picked) * terms.loss, mask).sum()
            metrics = {
                "policy_loss": policy.detach(),
                "clip_fraction": share(masked_sum(terms.clipped, mask), tokens),
                "approx_kl": share(masked_sum(terms.approx_kl, mask), tokens),
            }
            if in_loss:
                penalty = token_penalties(logprobs - picked.reference, mask, config.kl_estimator)
                kl = masked_sum(weights * penalty, mask).sum()
                loss = policy + self.controller.beta * kl
                metrics["kl_loss"] = kl.detach()
            yield Part(loss, metrics)

    def _sample(self, step: int) -> tuple[Scored, dict[str, float]]:
        """The step's groups and, where dynamic sampling asks for them, groups of further prompts."""
        config = self.config
        indices = self.order.step(step)
        scored = self.collector.draw(indices, step)
        taken = set(indices)
        others = [i for i in permutation((*self.key, step, "further"), len(self.prompts)) if i not in taken]
        for _ in range(config.resample_limit):
            missing = len(indices) - sum(self._informative(scored))
            further, others = others[:missing], others[missing:]
            if not further:
                break
            scored.extend(self.collector.draw(further, step))
        drawn = len(scored.prompts) // config.group_size
        figures: dict[str, float] = {}
        if config.group_size > 1:
            figures["groups_equal"] = float(all_equal(scored.scores.view(drawn, -1)).sum()) / drawn
        if config.dynamic_sampling:
            figures["groups_left_out"] = float(drawn - sum(self._informative(scored)))
            figures["groups_further"] = float(drawn - len(indices))
        return scored, figures

    def _informative(self, scored: Scored) -> list[bool]:
        """For each group, whether the update takes it in."""
        equal = all_equal(scored.scores.view(-1, self.config.group_size))
        return [not (self.config.dynamic_sampling and bool(flag)) for flag in equal]

    def _per_completion(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Advantages of completions, (N, G), given to each of their tokens: (B, T)."""
        return advantages.reshape(-1, 1) * mask

    def _groups(self, scores: Tensor, delta: Tensor, mask: Tensor, beta: float) -> Tensor:
        """(N, G) scores less beta times the k1 estimate of a completion's KL."""
        rewards = scores - beta * masked_sum(delta, mask) if beta else scores
        return rewards.view(-1, self.config.group_size)


class GRPOTrainer(GroupTrainer):
    """Advantages are rewards centred, and scaled, within their group."""

    name = "grpo"
    config: GRPOConfig

    def advantages(self, scores: Tensor, delta: Tensor, mask: Tensor, beta: float) -> Tensor:
        rewards = self._groups(scores, delta, mask, beta)
        return self._per_completion(group_advantages(rewards, scale=self.config.scale_rewards), mask)


class RLOOTrainer(GroupTrainer):
    """Advantages are rewards less the mean of the others in their group."""

    name = "rloo"

    def advantages(self, scores: Tensor, delta: Tensor, mask: Tensor, beta: float) -> Tensor:
        rewards = self._groups(scores, delta, mask, beta)
        return self._per_completion(leave_one_out_advantages(rewards), mask)


class ReinforceTrainer(GroupTrainer):
    """Advantages are what a token's completion earns from there on, brought to unit variance."""

    name = "reinforce"
    config: ReinforceConfig

    def advantages(self, scores: Tensor, delta: Tensor, mask: Tensor, beta: float) -> Tensor:
        rewards = token_rewards(scores, delta, torch.zeros_like(delta), mask, beta=beta)
        returns = returns_to_go(rewards, mask)
        return whitened(returns, mask) if self.config.whiten_advantages else returns
