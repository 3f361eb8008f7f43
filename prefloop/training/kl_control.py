"""Which rule a section sets for beta, the weight of the KL."""

from __future__ import annotations

from prefloop.config.on_policy import OnPolicyConfig, PolicyGradientConfig
from prefloop.objectives.kl import AdaptiveKL, FixedKL, ScheduledKL


def controller_of(config: OnPolicyConfig) -> FixedKL:
    """What sets beta from step to step, as `kl_control` says; 0 throughout where a section weighs no KL."""
    if not isinstance(config, PolicyGradientConfig):
        return FixedKL(0.0)
    if config.kl_control == "adaptive":
        return AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
    if config.kl_control == "schedule":
        return ScheduledKL(config.kl_coef, config.kl_final, config.steps)
    return FixedKL(config.kl_coef)
