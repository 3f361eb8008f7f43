"""GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.groups import GroupConfig
from prefloop.config.parse import at_least


@dataclass(frozen=True)
class GRPOConfig(GroupConfig):
    """Section `grpo`; defaults after Shao et al. 2024, but for smaller groups (64 there).

    Attributes:
        scale_rewards: a group's centred rewards are divided by the "group"'s standard deviation, by the whole
            "batch"'s, or by nothing ("none", Liu et al. 2025).
    """

    scale_rewards: Literal["group", "batch", "none"] = "group"
    kl_coef: float = 0.04
    kl_in: Literal["reward", "loss"] = "loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("group_size", self.group_size, 2)
