"""The stage online_dpo: DPO on pairs that the policy itself samples and the reward model labels."""

from __future__ import annotations

from prefloop.config.online_dpo import OnlineDPOConfig
from prefloop.training.online_dpo import OnlineDPOTrainer
from tasks.support.policy_fitting import improve
from tasks.support.policy_stage import open_policy


def main() -> None:
    """Writes models/POLICY."""
    with open_policy("online_dpo", OnlineDPOConfig) as stage:
        improve(stage, OnlineDPOTrainer, "The SFT policy, tuned by online DPO.")


if __name__ == "__main__":
    main()
