"""When a policy may be promoted."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.parse import at_least, between


@dataclass(frozen=True)
class PromoteConfig:
    """Section `promote`: rules that a policy passes to become champion.

    Attributes:
        model: name in the MLflow registry.
        min_win_rate: lower end of the interval of the win rate against SFT.
        max_kl: KL to the SFT policy (nats a response).
        min_ended: share of responses that ended by themselves.
        max_refusal_drop: how much less often than SFT it may refuse harmful prompts (share; gold judge only).
    """

    model: str = "prefloop-policy"
    min_win_rate: float = 0.5
    max_kl: float = 5.0
    min_ended: float = 0.9
    max_refusal_drop: float = 0.05

    def __post_init__(self) -> None:
        between("min_win_rate", self.min_win_rate, 0, 1)
        at_least("max_kl", self.max_kl, 0)
        between("min_ended", self.min_ended, 0, 1)
        between("max_refusal_drop", self.max_refusal_drop, 0, 1)
