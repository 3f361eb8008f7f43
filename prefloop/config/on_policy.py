"""The knobs of every method that learns from what its policy samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.parse import at_least
from prefloop.config.scoring import ScoringConfig


@dataclass(frozen=True)
class OnPolicyConfig(ScoringConfig):
    """`steps` counts rollout batches; the trainer divides logits by the temperature of sampling.

    Attributes:
        inner_epochs: passes over one rollout batch.
        minibatches: optimiser steps a pass.
        ptx_coef: weight of the demonstrations' log-likelihood (InstructGPT eq. 2, on demonstrations).
        select_kl: the checkpoint with the best held-out reward at a KL of at most this is kept (nats);
            0 keeps the last one.
        select_prompts: prompts held out from the rollouts for that choice (count).
        select_every: rollout batches between two looks at it.
    """

    inner_epochs: int = 1
    minibatches: int = 1
    ptx_coef: float = 0.0
    select_kl: float = 4.5
    select_prompts: int = 128
    select_every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("inner_epochs", self.inner_epochs, 1)
        at_least("minibatches", self.minibatches, 1)
        at_least("steps", self.steps, 1)
        at_least("ptx_coef", self.ptx_coef, 0)
        at_least("select_kl", self.select_kl, 0)
        at_least("select_prompts", self.select_prompts, 1)
        at_least("select_every", self.select_every, 1)
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


@dataclass(frozen=True)
class PolicyGradientConfig(OnPolicyConfig):
    """Methods that weigh a KL to the SFT policy against the score; `batch_size` counts rollouts.

    Attributes:
        kl_coef: beta, the KL's weight (nats); 0 leaves it out, and the reference is never run.
        kl_control: "fixed", "adaptive" after Ziegler et al. 2019, or a "schedule": linear over the steps from
            `kl_coef` to `kl_final`.
        kl_target: KL a response that adaptive control aims at (nats).
        kl_horizon: responses over which adaptive control acts.
        kl_final: beta at the last step of the schedule.
        dual_clip: bound c of Ye et al. 2020 on a negative advantage's ratio; 0 turns it off.
        kl_stop: inner epochs stop when the approximate KL old/new passes this; 0 turns it off.
        importance_cap: c of truncated importance sampling (Yao et al. 2025): a token's policy loss is
            weighted by min(pi/pi_engine, c), as the engine that sampled it is not quite the policy; 0: off.
    """

    kl_coef: float = 0.05
    kl_control: Literal["fixed", "adaptive", "schedule"] = "fixed"
    kl_target: float = 3.0
    kl_horizon: float = 5000.0
    kl_final: float = 0.0
    dual_clip: float = 0.0
    kl_stop: float = 0.0
    importance_cap: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("kl_coef", self.kl_coef, 0)
        at_least("kl_target", self.kl_target, 0, strict=True)
        at_least("kl_horizon", self.kl_horizon, 0, strict=True)
        at_least("kl_final", self.kl_final, 0)
        at_least("kl_stop", self.kl_stop, 0)
        at_least("importance_cap", self.importance_cap, 0)
        if self.kl_control == "adaptive" and not self.kl_coef:
            raise ValueError("kl_control adaptive scales kl_coef, which must be more than 0")
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be more than 1, or 0 for none, got {self.dual_clip}")

    @property
    def weighs_kl(self) -> bool:
        """True when a step may give the KL a weight above 0."""
        return self.kl_coef > 0 or (self.kl_control == "schedule" and self.kl_final > 0)
