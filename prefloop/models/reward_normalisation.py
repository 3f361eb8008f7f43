"""From raw scores to the reward: members to a common scale, aggregated, normalised, freed of length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefloop.errors import ModelError

AGGREGATES = ("mean", "worst", "uwo")


def aggregate_members(scores: Tensor, how: str, uwo_coef: float) -> Tensor:
    """One score of several members' (Coste et al. 2023): (B, M) float -> (B,).

    "mean"; "worst", the least (worst-case optimisation); "uwo", mean - lambda * variance
    (uncertainty-weighted optimisation), the variance that of these members: the sum of squares over M.
    """
    if how == "worst":
        return scores.amin(dim=1)
    if how == "uwo":
        return scores.mean(dim=1) - uwo_coef * scores.var(dim=1, unbiased=False)
    return scores.mean(dim=1)


@dataclass(frozen=True)
class Normalisation:
    """How raw scores become rewards; its figures come from completions of the SFT policy.

        z_m = (raw_m - mean_m) / std_m,  r = (aggregate(z) - mean) / std,
        score = r - slope (tokens - mean_tokens) - penalty * tokens

    Attributes:
        mean, std: of the aggregate.
        members: each member's mean and std of raw scores. Those of a single model are 0 and 1: it is its own
            aggregate.
        aggregate, uwo_coef: see `aggregate_members`.
        slope: score a token that length explains, subtracted by regression. mean_tokens: where that is 0.
        penalty: score subtracted a token.
    """

    mean: float = 0.0
    std: float = 1.0
    members: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    aggregate: str = "mean"
    uwo_coef: float = 0.5
    slope: float = 0.0
    mean_tokens: float = 0.0
    penalty: float = 0.0

    @property
    def needs_length(self) -> bool:
        """True where a score depends on the completion's length."""
        return bool(self.slope or self.penalty)

    def standardise(self, raw: Tensor) -> Tensor:
        """Each member's scores on its own scale: (B, M) float -> (B, M)."""
        means, stds = (raw.new_tensor(column) for column in zip(*self.members, strict=True))
        return (raw - means) / stds

    def apply(self, raw: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """Rewards: (B, M) float raw scores -> (B,).

        Args:
            tokens: length of each completion (tokens), where `needs_length`.
        """
        combined = aggregate_members(self.standardise(raw), self.aggregate, self.uwo_coef)
        scores = (combined - self.mean) / self.std
        if not self.needs_length:
            return scores
        assert tokens is not None, "length control needs the completions' lengths"
        lengths = raw.new_tensor(tokens)
        return scores - self.slope * (lengths - self.mean_tokens) - self.penalty * lengths

    def as_json(self) -> dict[str, Any]:
        """As the file beside the weights holds it; a single model without length control has two figures."""
        values: dict[str, Any] = {"mean": self.mean, "std": self.std}
        if len(self.members) > 1:
            values["members"] = [{"mean": mean, "std": std} for mean, std in self.members]
            values |= {"aggregate": self.aggregate, "uwo_coef": self.uwo_coef}
        if self.needs_length:
            values["length"] = {
                "slope": self.slope,
                "mean_tokens": self.mean_tokens,
                "penalty": self.penalty,
            }
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Normalisation:
        """Reads what `as_json` gave.

        Raises:
            ModelError: a figure is missing or no number, or the aggregate is unknown.
        """
        try:
            members = tuple((float(m["mean"]), float(m["std"])) for m in values.get("members", []))
            aggregate = str(values.get("aggregate", "mean"))
            if aggregate not in AGGREGATES:
                raise ValueError(f"unknown aggregate {aggregate!r}")
            return cls(
                mean=float(values["mean"]),
                std=float(values["std"]),
                members=members or cls.members,
                aggregate=aggregate,
                uwo_coef=float(values.get("uwo_coef", cls.uwo_coef)),
                **{name: float(value) for name, value in values.get("length", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{where} holds no normalisation that prefloop knows: {error!r}",
                "restore the file, or train the reward model again",
            ) from error


def slope_on(lengths: Sequence[int], scores: Tensor) -> float:
    """Least-squares slope of (B,) scores on lengths (score a token); 0 where lengths do not vary."""
    x = torch.tensor(lengths, dtype=torch.float64)
    x = x - x.mean()
    spread = float((x**2).sum())
    return float((x * scores.double()).sum()) / spread if spread else 0.0
