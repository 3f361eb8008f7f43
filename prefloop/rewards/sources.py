"""A reward is a weighted sum of named sources, each logged apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from prefloop.errors import TrainingError
from prefloop.models.reward_model import RewardModel
from prefloop.objectives.overlong import overlong_penalty


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


@runtime_checkable
class LengthSource(Protocol):
    """Scores completions by their lengths (tokens, the end token included) alone: (B,) float32."""

    def score_lengths(self, lengths: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Overlong:
    """The soft punishment of Yu et al. 2025 (eq. 13): from 0 at `limit` - `cache` tokens to -1 at `limit`."""

    limit: int
    cache: int

    def score_lengths(self, lengths: Tensor) -> Tensor:
        return overlong_penalty(lengths, limit=self.limit, cache=self.cache)


@dataclass(frozen=True)
class RewardSum:
    """Weighted sources.

    Attributes:
        sources: name -> (weight, source).
        unended: the whole score of a completion that the length limit cut; None leaves it its own.
    """

    sources: Mapping[str, tuple[float, RewardSource | LengthSource]]
    unended: float | None = None

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        ended: Sequence[bool],
        lengths: Sequence[int] = (),
        batch_size: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, (B,) float32, and each source's scores before its weight, (B,) each.

        Args:
            lengths: of the completions (tokens, the end token included), for sources that look at them.
            batch_size: completions that a source is given at once; 0 gives it all.

        Raises:
            TrainingError: a source gave a NaN or infinite score.
        """
        total = torch.zeros(len(completions))
        parts: dict[str, Tensor] = {}
        for name, (weight, source) in self.sources.items():
            if isinstance(source, LengthSource):
                part = source.score_lengths(torch.tensor(lengths))
            else:
                part = torch.cat(
                    [
                        source.score(prompts[some], completions[some], ended[some])
                        for some in _slices(len(completions), batch_size)
                    ]
                )
            if not bool(torch.isfinite(part).all()):
                raise TrainingError(
                    f"the reward source {name} gave a NaN or infinite score", "mend it, or leave it out"
                )
            parts[name] = part
            total = total + weight * part
        if self.unended is not None:
            total = torch.where(torch.tensor(list(ended)), total, torch.full_like(total, self.unended))
        return total, parts


def _slices(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` items of `count`; one where `size` is 0."""
    step = size or max(count, 1)
    return [slice(start, start + step) for start in range(0, max(count, 1), step)]
