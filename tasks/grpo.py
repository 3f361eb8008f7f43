"""The stage grpo: the SFT policy improves on groups of its own completions."""

from __future__ import annotations

from prefloop.config.grpo import GRPOConfig
from prefloop.training.groups import GRPOTrainer
from tasks.support.policy_fitting import improve
from tasks.support.policy_stage import open_policy


def main() -> None:
    """Writes models/POLICY."""
    with open_policy("grpo", GRPOConfig) as stage:
        improve(stage, GRPOTrainer, "The SFT policy, tuned by GRPO.")


if __name__ == "__main__":
    main()
