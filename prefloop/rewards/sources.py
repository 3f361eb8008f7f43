"""A reward is a weighted sum of named sources, each logged apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from prefloop.models.reward_model import RewardModel


class RewardSource(Protocol):
    """Scores completions: (B,) float32."""

    def score(self, prompts: Sequence[Any], completions: Sequence[str], ended: Sequence[bool]) -> Tensor: ...


@dataclass(frozen=True)
class LearnedReward:
    """The normalised score of a reward model, clipped to +- `clip` (0: not clipped)."""

    model: RewardModel
    clip: float = 0.0

    def score(self, prompts: Sequence[Any], completions: Sequence[str], ended: Sequence[bool]) -> Tensor:
        scores = self.model.score(prompts, completions)
        return scores.clamp(-self.clip, self.clip) if self.clip else scores


@dataclass(frozen=True)
class MissingEnd:
    """-1 for a completion that the length limit cut, 0 otherwise: the policy learns to stop."""

    def score(self, prompts: Sequence[Any], completions: Sequence[str], ended: Sequence[bool]) -> Tensor:
        return torch.tensor([0.0 if flag else -1.0 for flag in ended])


@dataclass(frozen=True)
class RewardSum:
    """Weighted sources.

    Attributes:
        sources: name -> (weight, source).
    """

    sources: Mapping[str, tuple[float, RewardSource]]

    def score(
        self, prompts: Sequence[Any], completions: Sequence[str], ended: Sequence[bool]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, (B,) float32, and each source's scores before its weight, (B,) each."""
        total = torch.zeros(len(completions))
        parts: dict[str, Tensor] = {}
        for name, (weight, source) in self.sources.items():
            parts[name] = source.score(prompts, completions, ended)
            total = total + weight * parts[name]
        return total, parts
