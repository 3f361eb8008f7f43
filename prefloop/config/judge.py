"""The judge that evaluation listens to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.reward import RewardConfig


@dataclass(frozen=True)
class JudgeConfig(RewardConfig):
    """Section `judge`.

    Attributes:
        kind: "gold", the embedded world's exact judge; or "reward_model", fitted on prompts that the reward
            model under optimisation never saw (`ingest.judge_share`). The other knobs are the reward model's.
    """

    kind: Literal["gold", "reward_model"] = "gold"
