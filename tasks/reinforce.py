"""The stage reinforce: REINFORCE++, PPO's clipped loss without a critic."""

from __future__ import annotations

from prefloop.config.reinforce import ReinforceConfig
from prefloop.training.groups import ReinforceTrainer
from tasks.support.policy_fitting import improve
from tasks.support.policy_stage import open_policy


def main() -> None:
    """Writes models/POLICY."""
    with open_policy("reinforce", ReinforceConfig) as stage:
        improve(stage, ReinforceTrainer, "The SFT policy, tuned by REINFORCE++.")


if __name__ == "__main__":
    main()
