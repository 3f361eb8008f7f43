"""The stage ppo: the SFT policy improves against the reward model under a KL penalty."""

from __future__ import annotations

from typing import Any

from prefloop.config.ppo import PPOConfig
from prefloop.models.critic import make_critic
from prefloop.training.ppo import PPOTrainer
from tasks.support.policy_fitting import Materials, improve
from tasks.support.policy_stage import open_policy


def main() -> None:
    """Writes models/POLICY."""

    def critic(given: Materials[PPOConfig]) -> dict[str, Any]:
        made = make_critic(given.config, given.model, given.reward_model, given.tokenizer)
        return {"critic": made.to(given.bench.environment.device)}

    with open_policy("ppo", PPOConfig) as stage:
        improve(stage, PPOTrainer, "The SFT policy, tuned by PPO.", critic)


if __name__ == "__main__":
    main()
