"""REINFORCE++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.groups import GroupConfig


@dataclass(frozen=True)
class ReinforceConfig(GroupConfig):
    """Section `reinforce`; defaults after Hu 2025.

    Attributes:
        whiten_advantages: to mean 0 and variance 1 over the real tokens of the rollout batch.
    """

    group_size: int = 1
    kl_coef: float = 0.01
    normaliser: Literal["sequence", "tokens", "constant"] = "tokens"
    whiten_advantages: bool = True
