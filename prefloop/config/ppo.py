"""PPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prefloop.config.parse import at_least, between
from prefloop.config.rollout import SamplingConfig
from prefloop.config.training import TrainingConfig


@dataclass(frozen=True)
class PPOConfig(TrainingConfig):
    """Section `ppo`; `steps` counts rollout batches, `batch_size` the rollouts of one.

    Attributes:
        sampling: how the policy samples; the trainer divides logits by the same temperature.
        kl_coef: beta, the weight of the KL to the SFT policy in the reward (nats).
        kl_control: "fixed", or "adaptive" after Ziegler et al. 2019.
        kl_target: KL a response that adaptive control aims at (nats).
        kl_horizon: responses over which adaptive control acts.
        gamma, gae_lambda: discount and trace of the advantage estimate.
        clip_range: epsilon of the policy's clipped ratio.
        value_clip_range: epsilon of the clipped value loss; 0 turns it off.
        value_coef: weight of the value loss.
        inner_epochs: passes over one rollout batch.
        minibatches: optimiser steps a pass.
        whiten_advantages, whiten_rewards: to unit variance over real tokens; rewards keep their mean.
        score_clip: scores are clipped to +- this; 0 turns it off.
        missing_eos_penalty: subtracted from the score of a completion that did not end.
        critic: "separate" network, or a value head on the policy's "shared" trunk.
        critic_base: where a separate critic starts: the reward model, or the SFT policy when shapes differ.
        critic_learning_rate: 0 takes `learning_rate`.
        critic_warmup_steps: rollout batches in which only the critic learns.
        dual_clip: bound c of Ye et al. 2020 on a negative advantage's ratio; 0 turns it off.
        kl_stop: inner epochs stop when the approximate KL old/new passes this; 0 turns it off.
        ptx_coef: weight of the demonstrations' log-likelihood (InstructGPT eq. 2, on demonstrations).
        select_kl: the checkpoint with the best held-out reward at a KL of at most this is kept (nats);
            0 keeps the last one.
        select_prompts: prompts held out from the rollouts for that choice (count).
        select_every: rollout batches between two looks at it.
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    kl_coef: float = 0.05
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    kl_target: float = 3.0
    kl_horizon: float = 5000.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coef: float = 0.1
    inner_epochs: int = 2
    minibatches: int = 2
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    score_clip: float = 0.0
    missing_eos_penalty: float = 1.0
    critic: Literal["separate", "shared"] = "separate"
    critic_base: Literal["reward", "sft"] = "reward"
    critic_learning_rate: float = 0.0
    critic_warmup_steps: int = 0
    dual_clip: float = 0.0
    kl_stop: float = 0.0
    ptx_coef: float = 0.0
    select_kl: float = 4.5
    select_prompts: int = 128
    select_every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("kl_coef", self.kl_coef, 0)
        at_least("kl_target", self.kl_target, 0, strict=True)
        at_least("kl_horizon", self.kl_horizon, 0, strict=True)
        between("gamma", self.gamma, 0, 1)
        between("gae_lambda", self.gae_lambda, 0, 1)
        at_least("clip_range", self.clip_range, 0, strict=True)
        at_least("inner_epochs", self.inner_epochs, 1)
        at_least("minibatches", self.minibatches, 1)
        at_least("steps", self.steps, 1)
        at_least("sampling.temperature", self.sampling.temperature, 0, strict=True)
        if self.sampling.top_p < 1:
            raise ValueError(
                "sampling.top_p must be 1: log-probs of a truncated distribution are not the policy's"
            )
        if self.lora.dropout:
            raise ValueError(
                "lora.dropout must be 0: log-probs of equal tokens must agree between sampling and training"
            )
        if self.batch_size % self.minibatches:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of minibatches {self.minibatches}")
