"""Online DPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.on_policy import OnPolicyConfig
from prefloop.config.parse import at_least


@dataclass(frozen=True)
class OnlineDPOConfig(OnPolicyConfig):
    """Section `online_dpo`; `batch_size` and `micro_batch_size` count prompts, each with two completions.

    Attributes:
        beta: strength of the tie to the SFT policy.
        labels: "hard": the higher score is the better completion, equal ones are left out; "soft": the better
            one with probability sigmoid(score - other score); "sampled": drawn with that probability.
    """

    beta: float = 0.1
    labels: Literal["hard", "soft", "sampled"] = "hard"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("beta", self.beta, 0, strict=True)
