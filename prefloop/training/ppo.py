"""PPO: sample, score, estimate advantages, improve policy and critic by the clipped losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.ppo import PPOConfig
from prefloop.data.batching import Batch
from prefloop.models.critic import Critic
from prefloop.models.forward import hidden_states, preceding, precision_context
from prefloop.objectives.masked import masked_sum, masked_whiten
from prefloop.objectives.ppo import (
    explained_variance,
    generalised_advantages,
    policy_loss,
    token_rewards,
    value_loss,
)
from prefloop.rewards.sources import RewardSum
from prefloop.training.experience import Experience, behaviour_logprobs, rollout_figures
from prefloop.training.figures import share
from prefloop.training.looks import Row
from prefloop.training.loop import Part
from prefloop.training.on_policy import OnPolicyTrainer
from prefloop.training.optimisation import Optimisation, save_memory
from prefloop.training.passes import as_batch


@dataclass(frozen=True)
class PPOExperience(Experience):
    """Adds, each (B, T) and at sampling time: the critic's values, advantages, and returns to learn."""

    values: Tensor
    advantages: Tensor
    returns: Tensor


class PPOTrainer(OnPolicyTrainer[PPOExperience]):
    """Improves a policy against a reward under a KL penalty to a reference.

    Args:
        critic: separate, or a head alone on the policy's trunk.
        The others: see OnPolicyTrainer.
    """

    name = "ppo"
    experience = PPOExperience
    config: PPOConfig

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        critic: Critic,
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardSum,
        prompts: Sequence[Row],
        config: PPOConfig,
        **options: Any,
    ) -> None:
        super().__init__(policy, reference, tokenizer, rewards, prompts, config, **options)
        self.critic = critic
        self.shared = critic.trunk is None
        self.critic_optimisation = Optimisation(
            critic, config, config.steps * self.updates, learning_rate=config.critic_learning_rate or None
        )
        if critic.trunk is not None:
            save_memory(critic.trunk, config)

    @torch.no_grad()
    def collect(self, step: int) -> tuple[PPOExperience, dict[str, float]]:
        """Samples and scores the rollout batch of 0-based `step`; advantages by GAE."""
        config, beta = self.config, self.controller.beta
        self.policy.eval()
        self.critic.eval()
        scored = self.collector.draw(self.order.step(step), step)
        batch = as_batch(scored.rollouts, int(self.tokenizer.pad_token_id)).to(self.device)
        mask = batch.wanted
        logprobs, entropy, values = self.passes.in_groups(
            batch, lambda part: self._policy_and_values(part, with_entropy=True)
        )
        reference = self.reference_logprobs(batch) if config.weighs_kl else None
        anchor = logprobs if reference is None else reference
        rewards = token_rewards(scored.scores.to(self.device), logprobs, anchor, mask, beta=beta)
        if config.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalised_advantages(
            rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
        )
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        figures = rollout_figures(scored, mask, logprobs, entropy, reference, beta)
        behaviour = behaviour_logprobs(scored.rollouts, batch)
        figures |= self.gap.figures(logprobs, behaviour, mask)
        figures["explained_variance"] = float(explained_variance(values, returns, mask))
        return PPOExperience(batch, logprobs, behaviour, values, advantages, returns), figures

    def parts(self, experience: PPOExperience, rows: Sequence[int], step: int) -> Iterator[Part]:
        """Clipped policy and value losses, each a mean over the real tokens of `rows`."""
        config = self.config
        tokens = max(int(experience.batch.wanted[list(rows)].sum()), 1)
        for group in self.passes.groups(experience.batch, rows):
            picked = experience.rows(group)
            mask = picked.batch.wanted
            logprobs, _, values = self._policy_and_values(picked.batch)
            terms = policy_loss(
                logprobs,
                picked.logprobs,
                picked.advantages,
                clip_range=config.clip_range,
                dual_clip=config.dual_clip,
            )
            policy = masked_sum(self.gap.weights(picked) * terms.loss, mask).sum() / tokens
            errors = value_loss(values, picked.values, picked.returns, clip_range=config.value_clip_range)
            value = masked_sum(errors, mask).sum() / tokens
            yield Part(
                config.value_coef * value + (1.0 if self.learns(step) else 0.0) * policy,
                {
                    "policy_loss": policy.detach(),
                    "value_loss": value.detach(),
                    "clip_fraction": share(masked_sum(terms.clipped, mask), tokens),
                    "approx_kl": share(masked_sum(terms.approx_kl, mask), tokens),
                },
            )

    def learns(self, step: int) -> bool:
        """False while only the critic learns."""
        return step >= self.config.critic_warmup_steps

    def apply(self, number: int, step: int) -> dict[str, float]:
        """Steps the critic and, unless it only warms up, the policy."""
        figures = {"grad_norm": 0.0, "learning_rate": 0.0}
        if self.learns(step):
            figures = super().apply(number, step)
        self.optimisation.clear()
        critic_norm, _ = self.critic_optimisation.step(number)
        return {**figures, "critic_grad_norm": critic_norm}

    def trained(self) -> dict[str, tuple[nn.Module, Optimisation]]:
        """Policy and critic."""
        return {**super().trained(), "ppo's critic": (self.critic, self.critic_optimisation)}

    def _policy_and_values(
        self, batch: Batch, *, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs, entropies and values, (B, T) each; one pass through a trunk that both share."""
        hidden = None
        with precision_context(self.precision, self.device):
            if self.shared:
                wanted = preceding(batch.wanted)
                hidden = hidden_states(self.policy, batch.input_ids, batch.attention_mask, wanted=wanted)
            values = self.critic(batch, hidden)
        logprobs, entropy = self.passes.logprobs(self.policy, batch, hidden=hidden, with_entropy=with_entropy)
        return logprobs, entropy, values
