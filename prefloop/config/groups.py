"""What the critic-free methods share: groups of completions a prompt, and a policy loss over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.on_policy import PolicyGradientConfig
from prefloop.config.parse import at_least, between


@dataclass(frozen=True)
class GroupConfig(PolicyGradientConfig):
    """`batch_size` counts rollouts: `batch_size / group_size` prompts a step.

    Attributes:
        group_size: G, completions a prompt.
        clip_range_low, clip_range_high: the ratio is clipped to [1 - low, 1 + high] (a higher high is "clip
            higher", Yu et al. 2025, section 3.1); 0 leaves that side open.
        kl_in: the KL to the SFT policy is a part of the "reward" (k1 estimator: the exact objective), or a
            term of the "loss".
        kl_estimator: of that term: "k1", "k2" or "k3" a token, or "k2_sequence", k2 of the whole completion's
            log-ratio, the one with the gradient of the KL.
        normaliser: what a completion's summed token losses are divided by: its length and the number of
            completions ("sequence"), all tokens of the update ("tokens"), or `loss_length` times the number
            of completions ("constant").
        loss_length: with "constant" (tokens); 0 takes `sampling.max_new_tokens`; 1 is the plain sum.
        dynamic_sampling: groups whose scores are all equal are left out of the update.
        resample_limit: with `dynamic_sampling`, rounds of further prompts that fill the batch; 0 fills none.
    """

    group_size: int = 8
    clip_range_low: float = 0.2
    clip_range_high: float = 0.2
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3", "k2_sequence"] = "k3"
    normaliser: Literal["sequence", "tokens", "constant"] = "sequence"
    loss_length: int = 0
    dynamic_sampling: bool = False
    resample_limit: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("group_size", self.group_size, 1)
        between("clip_range_low", self.clip_range_low, 0, 1)
        at_least("clip_range_high", self.clip_range_high, 0)
        at_least("loss_length", self.loss_length, 0)
        at_least("resample_limit", self.resample_limit, 0)
        if self.batch_size % self.group_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of group_size {self.group_size}")
        if self.dynamic_sampling and self.group_size == 1:
            raise ValueError("dynamic_sampling needs a group_size above 1: one score equals itself")
        if self.resample_limit and not self.dynamic_sampling:
            raise ValueError("resample_limit is set, but dynamic_sampling is off")
