"""Rejection-sampling fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.looks import LooksConfig
from prefloop.config.parse import at_least
from prefloop.config.scoring import ScoringConfig


@dataclass(frozen=True)
class RejectionConfig(ScoringConfig, LooksConfig):
    """Section `rejection`; `batch_size` counts kept completions, `epochs` and `steps` are a round's.
    `look_prompts` are kept from the rollouts whether there are looks or not.

    Attributes:
        group_size: n, completions a prompt of which the best is kept.
        rounds: times that the policy samples and is tuned on its best; the first round samples from SFT.
    """

    group_size: int = 8
    rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("group_size", self.group_size, 1)
        at_least("rounds", self.rounds, 1)
