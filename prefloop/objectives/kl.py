"""Estimators of the KL divergence between policies, and control of its weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def k1(delta: Tensor) -> Tensor:
    """Unbiased, signed: log pi - log pi_ref of sampled tokens (Schulman 2020)."""
    return delta


def k2(delta: Tensor) -> Tensor:
    """Half the squared log-ratio: biased, low variance (Schulman 2020)."""
    return 0.5 * delta**2


def k3(delta: Tensor) -> Tensor:
    """exp(-delta) - 1 + delta: unbiased and never negative (Schulman 2020)."""
    return torch.exp(-delta) - 1 + delta


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
