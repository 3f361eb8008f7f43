"""How far the engine that samples is from the trainer that learns, and weights that make up for it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prefloop.config.on_policy import OnPolicyConfig, PolicyGradientConfig
from prefloop.objectives.importance import importance_weights, mismatch
from prefloop.training.experience import Experience


@dataclass(frozen=True)
class EngineGap:
    """Both have the same weights, but not the same arithmetic.

    Attributes:
        cap: `importance_cap`; 0 corrects nothing.
    """

    cap: float

    def figures(self, logprobs: Tensor, behaviour: Tensor, mask: Tensor) -> dict[str, float]:
        """Of a rollout batch: log-probs under the trainer and under the engine, (B, T) each."""
        figures = {f"engine/{name}": value for name, value in mismatch(logprobs, behaviour, mask).items()}
        if self.cap:
            weights = importance_weights(logprobs, behaviour, self.cap)
            figures["engine/capped"] = float((weights >= self.cap)[mask].float().mean())
        return figures

    def weights(self, picked: Experience) -> Tensor | float:
        """Weights (B, T) of the policy's token losses; 1 where nothing is corrected."""
        if not self.cap:
            return 1.0
        return importance_weights(picked.logprobs, picked.behaviour, self.cap)


def gap_of(config: OnPolicyConfig) -> EngineGap:
    """What a section corrects: nothing where it has no `importance_cap`."""
    return EngineGap(config.importance_cap if isinstance(config, PolicyGradientConfig) else 0.0)
