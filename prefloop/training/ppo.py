"""PPO: sample, score, estimate advantages, improve policy and critic; best checkpoint under a KL budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.ppo import PPOConfig
from prefloop.data.batching import Batch, Order, chunks, collate, length_groups, pad
from prefloop.data.templates import Encoded
from prefloop.errors import DataError, StopRequested
from prefloop.models.adapters import reference_mode
from prefloop.models.critic import Critic
from prefloop.models.forward import hidden_states, precision_context, token_logprobs
from prefloop.objectives.kl import AdaptiveKL, FixedKL
from prefloop.objectives.masked import masked_mean, masked_sum, masked_whiten
from prefloop.objectives.ppo import (
    explained_variance,
    generalised_advantages,
    policy_loss,
    token_rewards,
    value_loss,
)
from prefloop.objectives.sft import sft_loss
from prefloop.rewards.sources import RewardSum
from prefloop.rollout.sampling import Rollouts, Sampler
from prefloop.training.checkpoints import Checkpoints, load_trainable, trainable_state
from prefloop.training.loop import check_finite
from prefloop.training.noise import permutation
from prefloop.training.optimisation import Optimisation, save_memory
from prefloop.training.recorder import Recorder

FORWARD_ROWS = 128
"""Rows of a forward pass without gradient, where `micro_batch_size` sets no limit."""


@dataclass(frozen=True)
class Experience:
    """One rollout batch, ready to learn from. All (B, T) over prompt + completion.

    Attributes:
        batch: tokens; `batch.wanted` is True on completion tokens, the end token included.
        logprobs, values, advantages, returns: at sampling time.
    """

    batch: Batch
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class PPOTrainer:
    """Improves a policy against a reward under a KL penalty to a reference.

    Args:
        policy: trained in place. reference: frozen, or the policy itself when it carries an adapter.
        critic: separate, or a head alone on the policy's trunk.
        rewards: what scores a completion.
        prompts: rows of data/validated/prompts.jsonl.
        demonstrations: encoded, for PPO-ptx; may be empty when `ptx_coef` is 0.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        critic: Critic,
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardSum,
        prompts: Sequence[dict[str, Any]],
        config: PPOConfig,
        *,
        seed: int,
        precision: str = "fp32",
        demonstrations: Sequence[Encoded] = (),
    ) -> None:
        held = min(config.select_prompts, len(prompts) // 4) if config.select_kl else 0
        shuffled = permutation((seed, "ppo", "held out"), len(prompts))
        self.held_out = [prompts[i] for i in sorted(shuffled[:held])]
        self.prompts = [prompts[i] for i in sorted(shuffled[held:])]
        if not self.prompts:
            raise DataError(
                "ppo has no prompt to sample from", "look at data/raw/prompts.jsonl and data/quarantine"
            )
        if config.ptx_coef and not demonstrations:
            raise DataError("ppo.ptx_coef is above 0, but there are no demonstrations")
        self.policy, self.reference, self.critic = policy, reference, critic
        self.tokenizer, self.rewards, self.config = tokenizer, rewards, config
        self.seed, self.precision, self.demonstrations = seed, precision, demonstrations
        self.sampler = Sampler(policy, tokenizer, config.sampling, precision)
        self.device = policy.device.type
        self.shared = critic.trunk is None
        self.order = Order(len(self.prompts), config.batch_size, (seed, "ppo"))
        self.updates = config.inner_epochs * config.minibatches
        total = config.steps * self.updates
        self.policy_optimisation = Optimisation(policy, config, total)
        self.critic_optimisation = Optimisation(
            critic, config, total, learning_rate=config.critic_learning_rate or None
        )
        self.controller = (
            AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
            if config.kl_control == "adaptive"
            else FixedKL(config.kl_coef)
        )
        self.best: dict[str, Any] = {}
        save_memory(policy, config)
        if critic.trunk is not None:
            save_memory(critic.trunk, config)

    def train(self, checkpoints: Checkpoints, recorder: Recorder) -> None:
        """Runs `config.steps` rollout batches, from the last checkpoint if there is one, and keeps the best
        weights.

        Raises:
            TrainingError: a loss became NaN. StopRequested: asked to end; a checkpoint was saved.
        """
        config = self.config
        start = 0
        if found := checkpoints.latest():
            start, state = found
            self._load(state)
        recorder.resume(start)
        for step in range(start, config.steps):
            experience, figures = self.collect(step)
            figures.update(self.learn(experience, step))
            self.controller.update(figures["objective/kl"], len(experience.logprobs))
            if self.held_out and ((step + 1) % config.select_every == 0 or step + 1 == config.steps):
                figures.update(self._select(step + 1))
            recorder.log(step + 1, config.steps, figures)
            stop = recorder.stop_requested()
            if stop or (checkpoints.due() and step + 1 < config.steps):
                recorder.checkpoint(step + 1, checkpoints.save(step + 1, self._state()))
            if stop:
                raise StopRequested(
                    f"ppo stopped after step {step + 1} of {config.steps}; run again to continue"
                )
        if self.best:
            load_trainable(self.policy, self.best["policy"], "ppo")
        self.policy.eval()

    @torch.no_grad()
    def collect(self, step: int) -> tuple[Experience, dict[str, float]]:
        """Samples and scores the rollout batch of 0-based `step`."""
        config = self.config
        self.policy.eval()
        self.critic.eval()
        indices = self.order.step(step)
        prompts = [self.prompts[i]["prompt"] for i in indices]
        rollouts = self.sampler.sample(prompts, (self.seed, "ppo", step), [(i, 0) for i in indices])
        scores, parts = self.rewards.score(prompts, rollouts.texts, rollouts.ended)
        batch = _as_batch(rollouts, int(self.tokenizer.pad_token_id)).to(self.device)
        mask = batch.wanted
        logprobs, entropy, values = self._evaluate(batch)
        with reference_mode(self.reference):
            (reference,) = self._in_groups(batch, lambda part: self._logprobs(self.reference, part)[:1])
        rewards = token_rewards(scores.to(self.device), logprobs, reference, mask, beta=self.controller.beta)
        if config.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalised_advantages(
            rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
        )
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        kl = masked_sum(logprobs - reference, mask)
        experience = Experience(batch, logprobs, values, advantages, returns)
        figures = {
            "score": float(scores.mean()),
            "score_std": float(scores.std()) if len(scores) > 1 else 0.0,
            **{f"reward/{name}": value for name, value in parts.items()},
            "objective/kl": float(kl.mean()),
            "objective/return": float(scores.mean()) - self.controller.beta * float(kl.mean()),
            "beta": self.controller.beta,
            "entropy": float(masked_mean(entropy, mask)),
            "length": float(mask.sum(dim=-1).float().mean()),
            "ended": sum(rollouts.ended) / len(rollouts.ended),
            "unique": len(set(rollouts.texts)) / len(rollouts.texts),
            "explained_variance": float(explained_variance(values, experience.returns, mask)),
        }
        return experience, figures

    def learn(self, experience: Experience, step: int) -> dict[str, float]:
        """The inner epochs over one rollout batch."""
        config = self.config
        self.policy.train()
        self.critic.train()
        size = config.batch_size // config.minibatches
        totals: dict[str, float] = {}
        done = 0
        for epoch in range(config.inner_epochs):
            order = permutation((self.seed, "ppo", step, "inner", epoch), len(experience.logprobs))
            epoch_kl = 0.0
            groups = list(chunks(order, size))
            for number, group in enumerate(groups):
                figures = self._update(experience, group, step, epoch * config.minibatches + number)
                epoch_kl += figures["approx_kl"] / len(groups)
                for name, value in figures.items():
                    totals[name] = totals.get(name, 0.0) + value
                done += 1
            if config.kl_stop and epoch_kl > config.kl_stop:
                break
        return {**{name: value / done for name, value in totals.items()}, "updates": float(done)}

    def _update(
        self, experience: Experience, rows: Sequence[int], step: int, update: int
    ) -> dict[str, float]:
        """One optimiser step of policy and critic on some rows of the rollout batch."""
        config = self.config
        tokens = max(int(experience.batch.wanted[list(rows)].sum()), 1)
        figures = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "approx_kl"), 0.0)
        warming = step < config.critic_warmup_steps
        for group in self._groups(experience.batch, rows):
            picked = _rows(experience, group)
            mask = picked.batch.wanted
            logprobs, _, values = self._evaluate(picked.batch, grad=True)
            terms = policy_loss(
                logprobs,
                picked.logprobs,
                picked.advantages,
                clip_range=config.clip_range,
                dual_clip=config.dual_clip,
            )
            policy = masked_sum(terms.loss, mask).sum() / tokens
            value = (
                masked_sum(
                    value_loss(values, picked.values, picked.returns, clip_range=config.value_clip_range),
                    mask,
                ).sum()
                / tokens
            )
            loss = config.value_coef * value + (0.0 if warming else 1.0) * policy
            loss.backward()
            figures["policy_loss"] += float(policy.detach())
            figures["value_loss"] += float(value.detach())
            figures["clip_fraction"] += float(masked_sum(terms.clipped, mask).sum()) / tokens
            figures["approx_kl"] += float(masked_sum(terms.approx_kl, mask).sum()) / tokens
        if config.ptx_coef and not warming:
            figures["ptx_loss"] = self._demonstrate(len(rows), step, update)
        check_finite(figures["policy_loss"] + figures["value_loss"], "ppo", step + 1)
        number = step * self.updates + update
        norm, rate = self.policy_optimisation.step(number) if not warming else (0.0, 0.0)
        self.policy_optimisation.optimiser.zero_grad(set_to_none=True)
        critic_norm, _ = self.critic_optimisation.step(number)
        check_finite(norm + critic_norm, "ppo", step + 1)
        return {**figures, "grad_norm": norm, "critic_grad_norm": critic_norm, "learning_rate": rate}

    def _demonstrate(self, count: int, step: int, update: int) -> float:
        """Adds ptx_coef times the gradient of demonstrations' NLL (Ouyang et al. 2022, eq. 2)."""
        order = permutation((self.seed, "ppo", step, "ptx", update), len(self.demonstrations))
        rows = [self.demonstrations[i] for i in order[:count]]
        total = sum(sum(row.trainable) for row in rows)
        loss_sum = 0.0
        for group in chunks(range(len(rows)), self.config.micro_batch_size):
            members = [rows[i] for i in group]
            batch = collate(members, self.tokenizer).to(self.device)
            with precision_context(self.precision, self.device):
                logprobs, _ = token_logprobs(self.policy, batch.input_ids, batch.attention_mask, batch.wanted)
            loss = sft_loss(logprobs, batch.wanted, total)
            (self.config.ptx_coef * loss).backward()
            loss_sum += float(loss.detach())
        return loss_sum

    def _evaluate(self, batch: Batch, *, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs, entropies, values of a batch, (B, T) each; in micro-batches when no gradient is kept."""
        if grad:
            return self._policy_and_values(batch)
        logprobs, entropy, values = self._in_groups(
            batch, lambda part: self._policy_and_values(part, with_entropy=True)
        )
        return logprobs, entropy, values

    def _policy_and_values(
        self, batch: Batch, *, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden = None
        with precision_context(self.precision, self.device):
            if self.shared:
                hidden = hidden_states(self.policy, batch.input_ids, batch.attention_mask)
            values = self.critic(batch.input_ids, batch.attention_mask, hidden)
        logprobs, entropy = self._logprobs(self.policy, batch, hidden=hidden, with_entropy=with_entropy)
        return logprobs, entropy, torch.where(batch.wanted, values, torch.zeros_like(values))

    def _logprobs(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        hidden: Tensor | None = None,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor]:
        with precision_context(self.precision, self.device):
            return token_logprobs(
                model,
                batch.input_ids,
                batch.attention_mask,
                batch.wanted,
                temperature=self.config.sampling.temperature,
                with_entropy=with_entropy,
                hidden=hidden,
            )

    def _groups(self, batch: Batch, rows: Sequence[int], limit: int = 0) -> list[list[int]]:
        """Rows for one forward pass each: at most a micro-batch, of similar length."""
        lengths = batch.attention_mask.sum(dim=-1).tolist()
        return [
            [micro[n] for n in group]
            for micro in chunks(rows, self.config.micro_batch_size or limit)
            for group in length_groups([lengths[i] for i in micro], self.device)
        ]

    def _in_groups(self, batch: Batch, compute: Callable[[Batch], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `compute` gives for a whole batch, (B, T) each, computed group by group; 0 beyond a group."""
        results: list[Tensor] = []
        for group in self._groups(batch, range(len(batch.input_ids)), FORWARD_ROWS):
            part = batch.rows(group)
            parts = compute(part)
            results = results or [x.new_zeros(batch.input_ids.shape) for x in parts]
            for result, x in zip(results, parts, strict=True):
                result[group, : x.shape[1]] = x
        return tuple(results)

    @torch.no_grad()
    def _select(self, step: int) -> dict[str, float]:
        """Scores the policy on held-out prompts; keeps weights that none within the KL budget beat."""
        self.policy.eval()
        prompts = [row["prompt"] for row in self.held_out]
        rollouts = self.sampler.sample(prompts, (self.seed, "ppo", "select"))
        scores, _ = self.rewards.score(prompts, rollouts.texts, rollouts.ended)
        batch = _as_batch(rollouts, int(self.tokenizer.pad_token_id)).to(self.device)
        (own,) = self._in_groups(batch, lambda part: self._logprobs(self.policy, part)[:1])
        with reference_mode(self.reference):
            (reference,) = self._in_groups(batch, lambda part: self._logprobs(self.reference, part)[:1])
        kl = float(masked_sum(own - reference, batch.wanted).sum()) / len(prompts)
        score = float(scores.mean())
        within = kl <= self.config.select_kl
        # Within the budget the higher score wins; while nothing is within it, the lower KL.
        rank = [1.0, score] if within else [0.0, -kl]
        if not self.best or rank > self.best["rank"]:
            self.best = {
                "rank": rank,
                "step": step,
                "score": score,
                "kl": kl,
                "policy": trainable_state(self.policy),
            }
        return {"select/score": score, "select/kl": kl, "select/best_step": float(self.best["step"])}

    def chosen_figures(self) -> dict[str, float]:
        """Held-out score and KL (nats) of the weights that were kept; empty when the last ones are."""
        return {name: float(self.best[name]) for name in ("score", "kl") if name in self.best}

    def _state(self) -> dict[str, Any]:
        return {
            "policy": trainable_state(self.policy),
            "critic": trainable_state(self.critic),
            "policy_optimiser": self.policy_optimisation.state_dict(),
            "critic_optimiser": self.critic_optimisation.state_dict(),
            "controller": self.controller.state_dict(),
            "best": self.best,
        }

    def _load(self, state: dict[str, Any]) -> None:
        load_trainable(self.policy, state["policy"], "ppo")
        load_trainable(self.critic, state["critic"], "ppo's critic")
        self.policy_optimisation.load_state_dict(state["policy_optimiser"])
        self.critic_optimisation.load_state_dict(state["critic_optimiser"])
        self.controller.load_state_dict(state["controller"])
        self.best = state["best"]


def _as_batch(rollouts: Rollouts, pad_id: int) -> Batch:
    sequences = [p + c for p, c in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)]
    wanted = [
        [False] * len(p) + [True] * len(c)
        for p, c in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)
    ]
    return pad(sequences, wanted, pad_id)


def _rows(experience: Experience, rows: Sequence[int]) -> Experience:
    """Some rows of an experience, cut to the longest of them."""
    index = list(rows)
    batch = experience.batch.rows(index)
    width = batch.input_ids.shape[1]
    return Experience(
        batch,
        experience.logprobs[index, :width],
        experience.values[index, :width],
        experience.advantages[index, :width],
        experience.returns[index, :width],
    )
