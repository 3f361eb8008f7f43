"""The stage rloo: REINFORCE with the other completions of a prompt as the baseline."""

from __future__ import annotations

from prefloop.config.rloo import RLOOConfig
from prefloop.training.groups import RLOOTrainer
from tasks.support.policy_fitting import improve
from tasks.support.policy_stage import open_policy


def main() -> None:
    """Writes models/POLICY."""
    with open_policy("rloo", RLOOConfig) as stage:
        improve(stage, RLOOTrainer, "The SFT policy, tuned by RLOO.")


if __name__ == "__main__":
    main()
