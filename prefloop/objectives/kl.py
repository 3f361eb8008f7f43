"""Estimators of the KL divergence between policies, and control of its weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# exp() of a log-ratio beyond this overflows or says nothing; clamped before exp.
LOG_RATIO_LIMIT = 20.0


def k1(delta: Tensor) -> Tensor:
    """Unbiased, signed: log pi - log pi_ref of sampled tokens (Schulman 2020)."""
    return delta


def k2(delta: Tensor) -> Tensor:
    """Half the squared log-ratio: biased, low variance (Schulman 2020)."""
    return 0.5 * delta**2


def k3(delta: Tensor) -> Tensor:
    """exp(-delta) - 1 + delta: unbiased and never negative (Schulman 2020)."""
    return torch.exp(-delta) - 1 + delta


def token_penalties(delta: Tensor, mask: Tensor, estimator: str) -> Tensor:
    """A KL as a term of the loss, spread over a completion's tokens: (B, T) float, 0 where the mask is False.

    Args:
        delta: (B, T) float with gradient, log pi - log pi_ref of sampled tokens.
        mask: (B, T) bool, True on completion tokens.
        estimator: "k1", "k2" or "k3" of each token, or "k2_sequence": k2 of the completion's summed delta, in
            equal shares. On samples of the policy itself the expected gradient of "k2_sequence", summed over
            tokens, is the KL's; per token, k2 and k3 drop what a token does to the KL of later ones, and k1
            has an expected gradient of 0.

    Raises:
        ValueError: no such estimator.
    """
    delta = torch.where(mask, delta, torch.zeros_like(delta))
    if estimator == "k2_sequence":
        share = k2(delta.sum(dim=-1, keepdim=True)) / mask.sum(dim=-1, keepdim=True).clamp(min=1)
        return share * mask
    if estimator == "k3":
        return k3(delta.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    if estimator not in ("k1", "k2"):
        raise ValueError(f"there is no estimator {estimator!r} of the KL")
    return k1(delta) if estimator == "k1" else k2(delta)


@dataclass
class FixedKL:
    """A beta that stays."""

    beta: float

    def update(self, kl: float, responses: int) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, float]:
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.beta = state["beta"]


@dataclass
class ScheduledKL(FixedKL):
    """A beta that goes in a line from where it starts to `final`, which the last of `steps` updates sees.

    Attributes:
        final: beta at the last step. steps: rollout batches in all. done: of them, those behind.
    """

    final: float = 0.0
    steps: int = 1
    done: int = 0

    def __post_init__(self) -> None:
        self.start = self.beta

    def update(self, kl: float, responses: int) -> None:
        """Goes on by one rollout batch."""
        self.done += 1
        share = min(self.done / max(self.steps - 1, 1), 1.0)
        self.beta = self.start + share * (self.final - self.start)

    def state_dict(self) -> dict[str, float]:
        return {"beta": self.beta, "done": self.done}

    def load_state_dict(self, state: dict[str, float]) -> None:
        super().load_state_dict(state)
        self.done = int(state["done"])


@dataclass
class AdaptiveKL(FixedKL):
    """Proportional control in log space (Ziegler et al. 2019, section 2.2).

    beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)

    Attributes:
        target: KL a response to hold (nats).
        horizon: responses over which the control acts.
    """

    target: float = 3.0
    horizon: float = 10000.0

    def update(self, kl: float, responses: int) -> None:
        """Takes the mean KL a response (nats) measured on `responses` samples."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.beta *= 1.0 + error * responses / self.horizon
