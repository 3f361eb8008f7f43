"""PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.on_policy import PolicyGradientConfig
from prefloop.config.parse import at_least, between


@dataclass(frozen=True)
class PPOConfig(PolicyGradientConfig):
    """Section `ppo`; `steps` counts rollout batches, `batch_size` the rollouts of one; the KL is in the
    reward.

    Attributes:
        gamma, gae_lambda: discount and trace of the advantage estimate.
        clip_range: epsilon of the policy's clipped ratio.
        value_clip_range: epsilon of the clipped value loss; 0 turns it off.
        value_coef: weight of the value loss.
        whiten_advantages, whiten_rewards: to unit variance over real tokens; rewards keep their mean.
        critic: "separate" network, or a value head on the policy's "shared" trunk.
        critic_base: where a separate critic starts: the reward model, or the SFT policy when shapes differ.
        critic_learning_rate: 0 takes `learning_rate`.
        critic_warmup_steps: rollout batches in which only the critic learns.
    """

    inner_epochs: int = 2
    minibatches: int = 2
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coef: float = 0.1
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    critic: Literal["separate", "shared"] = "separate"
    critic_base: Literal["reward", "sft"] = "reward"
    critic_learning_rate: float = 0.0
    critic_warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        between("gamma", self.gamma, 0, 1)
        between("gae_lambda", self.gae_lambda, 0, 1)
        at_least("clip_range", self.clip_range, 0, strict=True)
