"""RLOO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.groups import GroupConfig
from prefloop.config.parse import at_least


@dataclass(frozen=True)
class RLOOConfig(GroupConfig):
    """Section `rloo`; defaults after Ahmadian et al. 2024: a completion is one action (its log-prob is the
    plain sum over its tokens), the ratio is not clipped, each batch is used once."""

    group_size: int = 4
    kl_coef: float = 0.03
    clip_range_low: float = 0.0
    clip_range_high: float = 0.0
    normaliser: Literal["sequence", "tokens", "constant"] = "constant"
    loss_length: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("group_size", self.group_size, 2)
